"""Which mask does a tensor of token flags mean? Boolean, True may attend; read once into the algebra."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.errors import LayerError, MaskError
from attnbench.problem import Explicit, Full, Mask, Padding


def as_mask(given: Mask | Tensor, batch: int, heads: int, q_len: int, k_len: int) -> Mask:
    """A mask of the algebra from what was given: a Mask as it is, or a bool tensor, True where attending is allowed.

    [B, K]              which keys of each batch row are real (a padding mask)
    [B|1, H|1, Q, K]    which pairs are allowed

    A padding mask whose real keys stand together at one end becomes `Padding`; any other tensor an `Explicit`
    (which costs [B, Q, K] bits on the host). Reading a tensor waits for the device. Raises LayerError.
    """
    if isinstance(given, Mask):
        return given
    if not isinstance(given, Tensor):
        raise LayerError(
            f"mask is a mask of the algebra (ab.Causal(), ab.parse_mask('causal')) or a bool tensor, "
            f"not a {type(given).__name__}"
        )
    if given.dtype != torch.bool:
        raise LayerError(
            f"a mask tensor is bool, True where a query may attend, not {given.dtype}; "
            "of a float mask with -inf give `mask == 0`, of 0/1 numbers `mask.bool()`"
        )
    if given.ndim == 2:
        if tuple(given.shape) != (batch, k_len):
            hint = ""
            if tuple(given.shape) == (q_len, k_len):
                hint = "; for [q_len, k_len] give mask[None, None]"
            raise LayerError(
                f"a mask of two dimensions is a padding mask [batch, k_len] = [{batch}, {k_len}], "
                f"not {list(given.shape)}{hint}"
            )
        return _padding(given, q_len)
    if given.ndim != 4:
        raise LayerError(
            f"a mask tensor is [batch, k_len] or [batch or 1, heads or 1, q_len, k_len], "
            f"not of shape {list(given.shape)}; torch's [batch * heads, q_len, k_len] is "
            "mask.unflatten(0, (batch, heads)), and True means *may attend* here"
        )
    for have, want, name in zip(
        given.shape, (batch, heads, q_len, k_len), ("batch", "heads", "q_len", "k_len"), strict=True
    ):
        if have not in (want, 1):
            raise LayerError(
                f"the mask is {list(given.shape)}, but {name} is {want}; give "
                f"[{batch} or 1, {heads} or 1, {q_len}, {k_len}]"
            )
    if bool(given.all()):
        return Full()
    try:
        return Explicit(given.expand(given.shape[0], given.shape[1], q_len, k_len))
    except MaskError as problem:
        raise LayerError(str(problem)) from problem


def _padding(real: Tensor, q_len: int) -> Mask:
    real = real.cpu()
    lengths = real.sum(dim=1)  # [B]
    k_len = real.shape[1]
    place = torch.arange(k_len)
    if bool((lengths == k_len).all()):
        return Full()
    if bool((real == (place < lengths[:, None])).all()):
        return Padding(lengths)
    if bool((real == (place >= k_len - lengths[:, None])).all()):
        return Padding(lengths, "left")
    return Explicit(real[:, None, None, :].expand(-1, 1, q_len, -1))
