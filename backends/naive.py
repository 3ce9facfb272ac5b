"""What does attention look like written down plainly? Batched einsums, -inf where masked, softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Backend, Capabilities, Prepared
from attnbench.problem import Case, Inputs, Score

from ._dense import DensePrepared, DenseScores, repeat_heads, sink_of, softcap_of


def softmax_with_sink(scores: Tensor, permitted: Tensor | None, sink: Tensor | None) -> Tensor:
    """Probabilities [B, H, Q, K] over permitted keys; a row without keys gives zeros; the sink takes its share."""
    if permitted is not None:
        scores = scores.masked_fill(~permitted, -torch.inf)
    if sink is not None:
        column = sink[None, :, None, None].to(scores.dtype).expand(*scores.shape[:3], 1)
        return torch.softmax(torch.cat([scores, column], dim=-1), dim=-1)[..., :-1]
    probabilities = torch.softmax(scores, dim=-1)
    if permitted is not None:
        # softmax of a row of -inf is NaN; the masked_fill above already keeps its gradient at zero.
        probabilities = probabilities.masked_fill(~permitted.any(dim=-1, keepdim=True), 0.0)
    return probabilities


class Naive(Backend):
    capabilities = Capabilities(
        contract="dense", source="Attention Is All You Need, eq. 1 (arXiv 1706.03762)"
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
            k, v = repeat_heads(k, case.group), repeat_heads(v, case.group)  # [B, H, K, D], [B, H, K, Dv]
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * case.softmax_scale  # [B, H, Q, K]
            cap = softcap_of(changes)
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            bias = dense.bias(changes)
            if bias is not None:
                scores = scores + bias
            probabilities = softmax_with_sink(scores, permitted, sink_of(changes))
            if keep is not None:
                probabilities = probabilities * keep
            return torch.einsum("bhqk,bhkd->bhqd", probabilities, v)  # [B, H, Q, Dv]

        return DensePrepared(case, inputs, attend, kernel="einsum, softmax, einsum")


backend = Naive()
