"""What does attention pooling cost? One query weighs all tokens into one vector: products and sums, no matmul.

Made for one query a head, as a classifier pools its tokens; several are pooled one after the other. Products are
taken in float32: in fp16 those with small weights are lost, and autograd would add up the shares of several queries
in the inputs' dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Backend, Capabilities, Prepared, Refusal
from attnbench.problem import Case, Inputs, Score

from ._dense import DensePrepared, DenseScores, repeat_heads, sink_of, softcap_of
from .naive import softmax_with_sink

MOST_QUERIES = 256  # each keeps two tensors of the size of the keys for the backward


class AttentionPooling(Backend):
    capabilities = Capabilities(
        source="Hierarchical Attention Networks, eq. 5 to 7 (N16-1174); Set Transformer's PMA (arXiv 1810.00825)",
    )

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        if case.q_len > MOST_QUERIES:
            return Refusal(f"pools one query after the other: takes up to {MOST_QUERIES}, not {case.q_len}")
        return super().refuses(case, device)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            changes: tuple[Score, ...],
            permitted: Tensor | None,
            dense: DenseScores,
        ) -> Tensor:
            dtype, q, k, v = q.dtype, q.float(), k.float(), v.float()
            k, v = repeat_heads(k, case.group), repeat_heads(v, case.group)  # [B, H, K, D], [B, H, K, Dv]
            scores = torch.stack([(k * q[:, :, i : i + 1]).sum(dim=-1) for i in range(case.q_len)], dim=2)
            scores = scores * case.softmax_scale  # [B, H, Q, K]
            # Biases are added up in float32 too.
            wide = tuple(s if s.tensor is None else s.bound(s.tensor.float()) for s in changes)
            cap, bias = softcap_of(wide), dense.bias(wide)
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            if bias is not None:
                scores = scores + bias
            weights = softmax_with_sink(scores, permitted, sink_of(wide))  # [B, H, Q, K]
            pooled = [(weights[:, :, i, :, None] * v).sum(dim=-2) for i in range(case.q_len)]
            return torch.stack(pooled, dim=2).to(dtype)  # [B, H, Q, Dv]

        return DensePrepared(case, inputs, attend, kernel="product, softmax, weighted sum")


backend = AttentionPooling()
