"""The attn_mask of scaled_dot_product_attention as a mask of the algebra, and as a bias if it adds one."""

from __future__ import annotations

import weakref

import torch
from torch import Tensor

from attnbench.errors import LayerError
from attnbench.problem import Bias, Causal, Explicit, Extent, Full, Mask, Padding, Score

MASKS_KEPT = 4  # a model passes one mask to all its layers; a decoder with cross attention two


class MaskReader:
    """Reads mask tensors into the algebra, each once while it is alive and unchanged.

    Reading copies the mask to the host. Full, causal (either alignment), padding and causal with padding are
    recognised, and verified on every element; anything else becomes `Explicit`.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[weakref.ref[Tensor], int, Extent, Mask]] = []

    def __call__(self, attn_mask: Tensor, q: Tensor, k: Tensor) -> tuple[Mask, tuple[Score, ...]]:
        """(mask, score changes) of a bool mask (True may attend) or a float mask (added to the scores)."""
        extent = Extent(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        mask4 = _four_dimensions(attn_mask, extent)
        if attn_mask.dtype == torch.bool:
            return self._of_flags(attn_mask, mask4, extent), ()
        if not attn_mask.dtype.is_floating_point:
            raise LayerError(f"a mask is bool or floating, not {attn_mask.dtype}")
        cut = mask4.detach() <= torch.finfo(attn_mask.dtype).min
        if attn_mask.requires_grad or not bool(((mask4 == 0) | cut).all()):
            minus_infinity = mask4.detach() == -torch.inf
            bias = Bias(mask4.masked_fill(minus_infinity, 0.0).to(q.dtype))
            return recognised(~minus_infinity, extent), (bias,)
        empty = cut.all(dim=-1)
        if bool(empty.any()) and not bool((mask4[empty] == -torch.inf).all()):
            raise LayerError(
                "the float mask has rows in which every key is at the dtype's smallest number: torch averages "
                "over all keys there, which is no mask; pass a bool mask, or -inf"
            )
        return self._of_flags(attn_mask, ~cut, extent), ()

    def _of_flags(self, attn_mask: Tensor, allowed: Tensor, extent: Extent) -> Mask:
        for tensor, version, of, mask in self._kept:
            if tensor() is attn_mask and version == attn_mask._version and of == extent:
                return mask
        mask = recognised(allowed, extent)
        alive = [one for one in self._kept if one[0]() is not None]
        self._kept = [*alive, (weakref.ref(attn_mask), attn_mask._version, extent, mask)][-MASKS_KEPT:]
        return mask


def _four_dimensions(attn_mask: Tensor, extent: Extent) -> Tensor:
    shape = (1,) * (4 - attn_mask.ndim) + tuple(attn_mask.shape)
    if attn_mask.ndim == 3 and extent.heads == 1:
        shape = (attn_mask.shape[0], 1, *attn_mask.shape[1:])  # [B, Q, K] beside [B, S, D] tensors
    full = (extent.batch, extent.heads, extent.q_len, extent.k_len)
    if attn_mask.ndim > 4 or any(have not in (1, want) for have, want in zip(shape, full, strict=True)):
        raise LayerError(f"a mask of shape {list(attn_mask.shape)} does not broadcast to {list(full)}")
    return attn_mask.reshape(shape)


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
            dense = mask.materialize(extent.batch, 1, extent.q_len, extent.k_len)
            if bool((dense == flags).all()):
                return mask
    return Explicit(flags)


def _candidates(flags: Tensor, extent: Extent) -> list[Mask]:
    """The masks that [B|1, Q, K] flags may be, the likeliest first."""
    causal: list[Mask] = [Causal()]
    if extent.shift:
        causal.append(Causal("top_left"))
    # Under a causal mask the last query sees every real key; under a padding mask all do.
    lengths = flags[:, -1].sum(dim=-1).expand(extent.batch)
    right, left = Padding(lengths), Padding(lengths, "left")
    return [*causal, right, left, *(c & p for c in causal for p in (right, left))]
