"""The textbook's multi-head layer: a projection per head, attention head by head, the heads concatenated.

Layer level: each head's three projections pick its features out of all of them (0/1 matrices, whose products are
exact), and the output projection is the identity. That is 3 H products of [B * S, H * D] by [H * D, D] and one of
[B * Q, H * D] by [H * D, H * D] that the bare kernels do not have.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from attnbench.backend import Capabilities
from attnbench.problem import Case, Inputs

from ._dense_backend import DenseBackend, DenseCase


class Projections(NamedTuple):
    """The layer's matrices: one per head [heads, heads * dim, dim], and the output's [H * Dv, H * Dv]."""

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor


def _picking(heads: int, dim: int, inputs: Inputs) -> Tensor:
    eye = torch.eye(heads * dim, device=inputs.device, dtype=inputs.q.dtype)
    return eye.unflatten(1, (heads, dim)).transpose(0, 1).contiguous()  # [heads, heads * dim, dim]


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # [B, H, S, D] -> [B, S, H * D]


class ChunkedHeads(DenseBackend):
    capabilities = Capabilities(
        contract="dense",
        layer_level=True,
        source="Attention Is All You Need, section 3.2.2, MultiHead(Q, K, V) (arXiv 1706.03762)",
    )
    kernel = "a projection a head, concatenated"

    def fixed(self, case: Case, inputs: Inputs) -> Projections:
        return Projections(
            _picking(case.q_heads, case.head_dim, inputs),
            _picking(case.kv_heads, case.head_dim, inputs),
            _picking(case.kv_heads, case.v_dim, inputs),
            torch.eye(case.q_heads * case.v_dim, device=inputs.device, dtype=inputs.q.dtype),
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, case: DenseCase) -> Tensor:
        project: Projections = case.fixed
        queries, keys, values = _merged(q), _merged(k), _merged(v)  # [B, S, H * D]
        outs = []
        for h in range(q.shape[1]):
            kv = h // case.group
            q_h, k_h, v_h = queries @ project.q[h], keys @ project.k[kv], values @ project.v[kv]  # [B, S, D]
            scores = case.changed((q_h @ k_h.transpose(-2, -1) * case.scale)[:, None], h)  # [B, 1, Q, K]
            outs.append(case.softmax(scores, h)[:, 0] @ v_h)  # [B, Q, Dv]
        merged = torch.cat(outs, dim=-1) @ project.out  # [B, Q, H * Dv]
        return merged.unflatten(2, (q.shape[1], v.shape[3])).transpose(1, 2)  # [B, H, Q, Dv]


backend = ChunkedHeads()
