"""A Python loop over heads: the textbook's one-head attention, once for each head."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Capabilities

from ._dense_backend import DenseBackend, DenseCase


class PerHead(DenseBackend):
    capabilities = Capabilities(
        contract="dense", source="Attention Is All You Need, section 3.2.2 (arXiv 1706.03762)"
    )
    kernel = "loop over heads"
    has_dropout = True

    def attend(self, q: Tensor, k: Tensor, v: Tensor, case: DenseCase) -> Tensor:
        outs = []
        for h in range(q.shape[1]):
            kv = h // case.group
            scores = case.changed(
                (q[:, h] @ k[:, kv].transpose(-2, -1) * case.scale)[:, None], h
            )  # [B, 1, Q, K]
            weights = case.dropped(case.softmax(scores, h), h)[:, 0]  # [B, Q, K]
            outs.append(weights @ v[:, kv])  # [B, Q, Dv]
        return torch.stack(outs, dim=1)  # [B, H, Q, Dv]


backend = PerHead()
