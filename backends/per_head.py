"""What does a Python loop over heads cost? The textbook's one-head attention, once for each head."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Backend, Capabilities, Prepared
from attnbench.problem import Case, Inputs, Score

from ._dense import DensePrepared, DenseScores, sink_of, softcap_of
from .naive import softmax_with_sink


def _head(x: Tensor | None, h: int) -> Tensor | None:
    """Head h of [B|1, H|1, Q|1, K|1], kept as a dimension of size 1."""
    if x is None or x.shape[1] == 1:
        return x
    return x[:, h : h + 1]


class PerHead(Backend):
    capabilities = Capabilities(
        contract="dense", source="Attention Is All You Need, section 3.2.2 (arXiv 1706.03762)"
    )

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return self._prepare(case, inputs, None)

    def prepare_with_dropout(self, case: Case, inputs: Inputs, keep: Tensor) -> Prepared:
        return self._prepare(case, inputs, keep)

    def _prepare(self, case: Case, inputs: Inputs, keep: Tensor | None) -> Prepared:
        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            changes: tuple[Score, ...],
            permitted: Tensor | None,
            dense: DenseScores,
        ) -> Tensor:
            bias, cap, sink = dense.bias(changes), softcap_of(changes), sink_of(changes)
            outs = []
            for h in range(case.q_heads):
                kv = h // case.group
                scores = (q[:, h] @ k[:, kv].transpose(-2, -1) * case.softmax_scale)[:, None]  # [B, 1, Q, K]
                if cap is not None:
                    scores = cap * torch.tanh(scores / cap)
                of_head = _head(bias, h)
                if of_head is not None:
                    scores = scores + of_head
                logit = None if sink is None else sink[h : h + 1]
                probabilities = softmax_with_sink(scores, _head(permitted, h), logit)  # [B, 1, Q, K]
                if keep is not None:
                    probabilities = probabilities * keep[:, h : h + 1]
                outs.append(probabilities[:, 0] @ v[:, kv])  # [B, Q, Dv]
            return torch.stack(outs, dim=1)  # [B, H, Q, Dv]

        return DensePrepared(case, inputs, attend, kernel="loop over heads")


backend = PerHead()
