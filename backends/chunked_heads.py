"""What does a projection of its own for every head cost? The textbook's heads, each projected, then concatenated.

Layer level: each head's three projections pick its features out of all of them (0/1 matrices, whose products are
exact), and the projection out is the identity: 3 H products of [B * S, H * D] by [H * D, D] and one of
[B * Q, H * D] by [H * D, H * D] that the bare kernels do not have.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Backend, Capabilities, Prepared
from attnbench.problem import Case, Inputs, Score

from ._dense import DensePrepared, DenseScores, sink_of, softcap_of
from .naive import softmax_with_sink


def _merged(x: Tensor) -> Tensor:
    return x.transpose(1, 2).flatten(2)  # [B, H, S, D] -> [B, S, H * D]


def _of_head(x: Tensor | None, h: int) -> Tensor | None:
    return x if x is None or x.shape[1] == 1 else x[:, h : h + 1]


class ChunkedHeads(Backend):
    capabilities = Capabilities(
        contract="dense",
        layer_level=True,
        source="Attention Is All You Need, section 3.2.2, MultiHead(Q, K, V) (arXiv 1706.03762)",
    )

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        def picking(heads: int, dim: int) -> Tensor:
            """One matrix a head, [heads, heads * dim, dim]."""
            eye = torch.eye(heads * dim, device=inputs.device, dtype=inputs.q.dtype)
            return eye.unflatten(1, (heads, dim)).transpose(0, 1).contiguous()

        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            changes: tuple[Score, ...],
            permitted: Tensor | None,
            dense: DenseScores,
        ) -> Tensor:
            queries, keys, values = _merged(q), _merged(k), _merged(v)
            bias, cap, sink = dense.bias(changes), softcap_of(changes), sink_of(changes)
            outs = []
            for h in range(case.q_heads):
                kv = h // case.group
                q_h, k_h, v_h = queries @ of_q[h], keys @ of_k[kv], values @ of_v[kv]  # [B, S, D]
                scores = (q_h @ k_h.transpose(-2, -1) * case.softmax_scale)[:, None]  # [B, 1, Q, K]
                if cap is not None:
                    scores = cap * torch.tanh(scores / cap)
                of_head = _of_head(bias, h)
                if of_head is not None:
                    scores = scores + of_head
                logit = None if sink is None else sink[h : h + 1]
                outs.append(softmax_with_sink(scores, _of_head(permitted, h), logit)[:, 0] @ v_h)
            merged = torch.cat(outs, dim=-1) @ out_projection  # [B, Q, H * Dv]
            return merged.unflatten(2, (case.q_heads, case.v_dim)).transpose(1, 2)  # [B, H, Q, Dv]

        of_q = picking(case.q_heads, case.head_dim)
        of_k, of_v = picking(case.kv_heads, case.head_dim), picking(case.kv_heads, case.v_dim)
        width = case.q_heads * case.v_dim
        out_projection = torch.eye(width, device=inputs.device, dtype=inputs.q.dtype)
        return DensePrepared(case, inputs, attend, kernel="a projection a head, concatenated")


backend = ChunkedHeads()
