"""What does an attn_mask of scaled_dot_product_attention mean? A mask of the algebra, and a bias where it adds one."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from attnbench.errors import LayerError
from attnbench.problem import Bias, Causal, Explicit, Extent, Full, Mask, Padding, Score

READ_LATELY = 4  # a model gives one mask to all its layers; a decoder with cross attention two


class MaskReader:
    """Reads mask tensors into the algebra, each once while it is alive and unchanged.

    Reading copies the mask to the host. Patterns are recognised (full, causal either way, padding, and both),
    and each recognition is verified on every element; anything else becomes `Explicit`.
    """

    def __init__(self) -> None:
        self._known: list[tuple[weakref.ref[Tensor], int, Extent, Mask]] = []

    def __call__(self, given: Tensor, q: Tensor, k: Tensor) -> tuple[Mask, tuple[Score, ...]]:
        """(mask, score changes) of a bool mask (True may attend) or a float mask (added to the scores)."""
        extent = Extent(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        given4 = _four_dimensions(given, extent)
        if given.dtype == torch.bool:
            return self._of_flags(given, given4, extent), ()
        if not given.dtype.is_floating_point:
            raise LayerError(f"a mask is bool or floating, not {given.dtype}")
        cut = given4.detach() <= torch.finfo(given.dtype).min
        if given.requires_grad or not bool(((given4 == 0) | cut).all()):
            minus_infinity = given4.detach() == -torch.inf
            bias = Bias(given4.masked_fill(minus_infinity, 0.0).to(q.dtype))
            return recognised(~minus_infinity, extent), (bias,)
        empty = cut.all(dim=-1)
        if bool(empty.any()) and not bool((given4[empty] == -torch.inf).all()):
            raise LayerError(
                "the float mask has rows in which every key is at the dtype's smallest number: torch averages "
                "over all keys there, which is no mask; give a bool mask, or -inf"
            )
        return self._of_flags(given, ~cut, extent), ()

    def _of_flags(self, given: Tensor, allowed: Tensor, extent: Extent) -> Mask:
        for tensor, version, of, mask in self._known:
            if tensor() is given and version == given._version and of == extent:
                return mask
        mask = recognised(allowed, extent)
        alive = [one for one in self._known if one[0]() is not None]
        self._known = [*alive, (weakref.ref(given), given._version, extent, mask)][-READ_LATELY:]
        return mask


def _four_dimensions(given: Tensor, extent: Extent) -> Tensor:
    shape = (1,) * (4 - given.ndim) + tuple(given.shape)
    if given.ndim == 3 and extent.heads == 1:
        shape = (given.shape[0], 1, *given.shape[1:])  # [B, Q, K] beside [B, S, D] tensors
    full = (extent.batch, extent.heads, extent.q_len, extent.k_len)
    if given.ndim > 4 or any(have not in (1, want) for have, want in zip(shape, full, strict=True)):
        raise LayerError(f"a mask of shape {list(given.shape)} does not broadcast to {list(full)}")
    return given.reshape(shape)


def recognised(allowed: Tensor, extent: Extent) -> Mask:
    """The simplest mask that allows exactly these pairs, bool [B|1, H|1, Q|1, K|1]."""
    flags = allowed.detach().cpu()
    if bool(flags.all()):
        return Full()
    flags = flags.expand(flags.shape[0], flags.shape[1], extent.q_len, extent.k_len)
    if flags.shape[1] > 1 and bool((flags == flags[:, :1]).all()):
        flags = flags[:, :1]
    if flags.shape[0] > 1 and bool((flags == flags[:1]).all()):
        flags = flags[:1]
    if flags.shape[1] == 1:
        for mask in _candidates(flags[:, 0], extent):
            found = mask.materialize(extent.batch, 1, extent.q_len, extent.k_len)
            if bool((found == flags).all()):
                return mask
    return Explicit(flags)


def _candidates(flags: Tensor, extent: Extent) -> list[Mask]:
    """Masks that [B|1, Q, K] flags may be, the likeliest first."""
    causal: list[Mask] = [Causal()]
    if extent.shift:
        causal.append(Causal("top_left"))
    # Under a causal mask the last query sees every real key; under a padding mask all do.
    lengths = flags[:, -1].sum(dim=-1).expand(extent.batch)
    right, left = Padding(lengths), Padding(lengths, "left")
    return [*causal, right, left, *(c & p for c in causal for p in (right, left))]
