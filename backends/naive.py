"""Attention as the textbook writes it: softmax(q k^T / sqrt(D)) v, batched, every score in memory."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Capabilities

from ._dense import repeat_heads
from ._dense_backend import DenseBackend, DenseCase


class Naive(DenseBackend):
    capabilities = Capabilities(
        contract="dense",
        double_backward=True,
        source="Attention Is All You Need, eq. 1 (arXiv 1706.03762)",
    )
    kernel = "einsum, softmax, einsum"
    has_dropout = True

    def attend(self, q: Tensor, k: Tensor, v: Tensor, case: DenseCase) -> Tensor:
        k, v = repeat_heads(k, case.group), repeat_heads(v, case.group)  # [B, H, K, D], [B, H, K, Dv]
        scores = case.changed(torch.einsum("bhqd,bhkd->bhqk", q, k) * case.scale)  # [B, H, Q, K]
        weights = case.dropped(case.softmax(scores))  # [B, H, Q, K], a row sums to 1
        return torch.einsum("bhqk,bhkd->bhqd", weights, v)  # [B, H, Q, Dv]


backend = Naive()
