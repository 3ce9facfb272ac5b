"""Attention pooling: a query weighs all tokens into one vector, by products and sums instead of a matmul.

Written for one query per head, as a classifier pools its tokens; several are pooled one after the other. Products
are in float32: fp16 loses those with small weights, and autograd would add up the shares of several queries in the
inputs' dtype.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from attnbench.backend import Capabilities, Refusal
from attnbench.problem import Case

from ._dense import repeat_heads
from ._dense_backend import DenseBackend, DenseCase

MOST_QUERIES = 256  # each keeps two tensors of the size of the keys for the backward


class AttentionPooling(DenseBackend):
    capabilities = Capabilities(
        source="Hierarchical Attention Networks, eq. 5 to 7 (N16-1174); Set Transformer's PMA (arXiv 1810.00825)",
    )
    kernel = "product, softmax, weighted sum"

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        if case.q_len > MOST_QUERIES:
            return Refusal(
                f"pools one query after another: takes up to {MOST_QUERIES} queries, not {case.q_len}"
            )
        return super().refuses(case, device)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, case: DenseCase) -> Tensor:
        dtype, q, k, v = q.dtype, q.float(), k.float(), v.float()
        k, v = repeat_heads(k, case.group), repeat_heads(v, case.group)  # [B, H, K, D], [B, H, K, Dv]
        # Biases are added up in float32 too.
        wide = replace(
            case, scores=tuple(s if s.tensor is None else s.bound(s.tensor.float()) for s in case.scores)
        )
        rows = range(q.shape[2])
        scores = torch.stack([(k * q[:, :, i : i + 1]).sum(dim=-1) for i in rows], dim=2)  # [B, H, Q, K]
        scores = wide.changed(scores * case.scale)
        weights = wide.softmax(scores)  # [B, H, Q, K]
        pooled = [(weights[:, :, i, :, None] * v).sum(dim=-2) for i in rows]  # [B, H, Dv] each
        return torch.stack(pooled, dim=2).to(dtype)  # [B, H, Q, Dv]


backend = AttentionPooling()
