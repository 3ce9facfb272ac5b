"""The attention weights themselves, computed plainly."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.problem import Extent, Full, Mask


def permitted(mask: Mask, q: Tensor, k: Tensor) -> Tensor | None:
    """True where a query may attend a key, [B|1, H|1, Q, K]; None where all may."""
    if isinstance(mask, Full):
        return None
    extent = Extent(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return mask.materialize(extent.batch, extent.heads, extent.q_len, extent.k_len, device=q.device)


def attention_weights(q: Tensor, k: Tensor, mask: Mask = Full(), scale: float | None = None) -> Tensor:
    """softmax(scale q k^T) under the mask: [B, H, Q, K], differentiable; rows without a key are zero.

    q [B, H, Q, D], k [B, Hkv, K, D], any floating dtype.
    """
    group = q.shape[1] // k.shape[1]
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    k = k.repeat_interleave(group, dim=1) if group > 1 else k
    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale  # [B, H, Q, K]
    allowed = permitted(mask, q, k)
    if allowed is None:
        return torch.softmax(scores, dim=-1)
    weights = torch.softmax(scores.masked_fill(~allowed, -torch.inf), dim=-1)
    return weights.masked_fill(~allowed.any(dim=-1, keepdim=True), 0.0)
