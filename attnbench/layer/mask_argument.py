"""The `mask` argument of the layer as a mask of the algebra: a Mask, or a bool tensor (True may attend)."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.errors import LayerError, MaskError
from attnbench.problem import Explicit, Full, Mask, Padding


def as_mask(mask: Mask | Tensor, batch: int, heads: int, q_len: int, k_len: int) -> Mask:
    """The mask of the algebra: a Mask as it is, or the meaning of a bool tensor, True where attending is allowed.

    [B, K]              which keys of each batch row are real (a padding mask)
    [B|1, H|1, Q, K]    which pairs are allowed

    A padding mask whose real keys are contiguous at one end becomes `Padding`, any other tensor `Explicit` (which
    costs [B, Q, K] bits on the host). Reading a tensor synchronizes the device. Raises LayerError.
    """
    if isinstance(mask, Mask):
        return mask
    if not isinstance(mask, Tensor):
        raise LayerError(
            f"mask is a mask of the algebra (ab.Causal(), ab.parse_mask('causal')) or a bool tensor, "
            f"not a {type(mask).__name__}"
        )
    if mask.dtype != torch.bool:
        raise LayerError(
            f"a mask tensor is bool, True where a query may attend, not {mask.dtype}; "
            "pass `mask == 0` for a float mask with -inf, `mask.bool()` for 0/1 numbers"
        )
    if mask.ndim == 2:
        if tuple(mask.shape) != (batch, k_len):
            hint = ""
            if tuple(mask.shape) == (q_len, k_len):
                hint = "; for [q_len, k_len] pass mask[None, None]"
            raise LayerError(
                f"a mask of two dimensions is a padding mask [batch, k_len] = [{batch}, {k_len}], "
                f"not {list(mask.shape)}{hint}"
            )
        return _padding(mask, q_len)
    if mask.ndim != 4:
        raise LayerError(
            f"a mask tensor is [batch, k_len] or [batch or 1, heads or 1, q_len, k_len], "
            f"not of shape {list(mask.shape)}; torch's [batch * heads, q_len, k_len] is "
            "mask.unflatten(0, (batch, heads)), and True means *may attend* here"
        )
    for have, want, name in zip(
        mask.shape, (batch, heads, q_len, k_len), ("batch", "heads", "q_len", "k_len"), strict=True
    ):
        if have not in (want, 1):
            raise LayerError(
                f"the mask is {list(mask.shape)}, but {name} is {want}; pass "
                f"[{batch} or 1, {heads} or 1, {q_len}, {k_len}]"
            )
    if bool(mask.all()):
        return Full()
    try:
        return Explicit(mask.expand(mask.shape[0], mask.shape[1], q_len, k_len))
    except MaskError as error:
        raise LayerError(str(error)) from error


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
