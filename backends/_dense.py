"""Masks and score changes as dense tensors, for eager backends."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.problem import ALiBi, Bias, Case, RelativeBias, Score, Sink, Softcap


def allowed(case: Case, device: torch.device) -> Tensor | None:
    """True where a query may attend a key: bool [B|1, H|1, Q, K]; None if it may attend all of them."""
    if case.mask.simplified().kinds == {"full"} and not case.mask.is_combined:
        return None
    return case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len, device=device)


def alibi_bias(case: Case, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """`-slope[h] * |p - j|`: [1, H, Q, K], or None if the case has no ALiBi."""
    for score in case.scores:
        if isinstance(score, ALiBi):
            p = torch.arange(case.q_len, device=device)[:, None] + case.k_len - case.q_len
            distance = (p - torch.arange(case.k_len, device=device)).abs()  # [Q, K]
            slopes = torch.tensor(score.slopes_for(case.q_heads), device=device)  # [H]
            return -(slopes[:, None, None] * distance)[None].to(dtype)
    return None


def relative_index(case: Case, device: torch.device) -> Tensor | None:
    """The table entry of each pair, int64 [Q, K], or None if the case has no relative bias."""
    for score in case.scores:
        if isinstance(score, RelativeBias):
            return score.index(case.extent).to(device)
    return None


class DenseScores:
    """The score changes of a case as dense tensors; what depends on no gradient is made once, off the clock."""

    def __init__(self, case: Case, device: torch.device, dtype: torch.dtype) -> None:
        self.alibi = alibi_bias(case, device, dtype)
        self.index = relative_index(case, device)

    def bias(self, scores: tuple[Score, ...]) -> Tensor | None:
        """All biases added up, [B|1, H|1, Q|1, K|1], or None; differentiable in the tensors of `scores`."""
        total = self.alibi
        for score in scores:
            if isinstance(score, Bias):
                assert score.tensor is not None
                total = score.tensor if total is None else total + score.tensor
            elif isinstance(score, RelativeBias):
                assert score.tensor is not None
                assert self.index is not None
                # The gradient of this indexing adds up thousands of pairs per entry: in float32, not in bf16.
                table = score.tensor.float()[:, self.index][None].to(score.tensor.dtype)  # [1, H, Q, K]
                total = table if total is None else total + table
        return total


def softcap_of(scores: tuple[Score, ...]) -> float | None:
    """The cap, or None."""
    return next((score.cap for score in scores if isinstance(score, Softcap)), None)


def sink_of(scores: tuple[Score, ...]) -> Tensor | None:
    """The sink logits [H], or None."""
    return next((score.tensor for score in scores if isinstance(score, Sink)), None)


def repeat_heads(x: Tensor, group: int) -> Tensor:
    """[B, Hkv, S, D] to [B, H, S, D]: each key head repeated for the query heads that share it."""
    return x if group == 1 else x.repeat_interleave(group, dim=1)


def softmax_with_sink(scores: Tensor, permitted: Tensor | None, sink: Tensor | None) -> Tensor:
    """The weights [B, H, Q, K] of permitted keys; a row without keys gives zeros; the sink [H] takes its share."""
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
