"""How do eager backends turn masks and score changes into dense tensors?"""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import AutogradPrepared
from attnbench.problem import ALiBi, Bias, Case, Inputs, RelativeBias, Score, Sink, Softcap


def allowed(case: Case, device: torch.device) -> Tensor | None:
    """True where a query may attend a key: bool [B|1, H|1, Q, K]; None where it may attend all of them."""
    if case.mask.simplified().kinds == {"full"} and not case.mask.is_combined:
        return None
    return case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len, device=device)


def alibi_bias(case: Case, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    """`-slope[h] * |p - j|`: [1, H, Q, K], or None where the case has no ALiBi."""
    for score in case.scores:
        if isinstance(score, ALiBi):
            p = torch.arange(case.q_len, device=device)[:, None] + case.k_len - case.q_len
            distance = (p - torch.arange(case.k_len, device=device)).abs()  # [Q, K]
            slopes = torch.tensor(score.slopes_for(case.q_heads), device=device)  # [H]
            return -(slopes[:, None, None] * distance)[None].to(dtype)
    return None


def relative_index(case: Case, device: torch.device) -> Tensor | None:
    """The table entry of each pair, int64 [Q, K], or None where the case has no relative bias."""
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
                # The gradient of this indexing adds up thousands of pairs an entry: in float32, not in bf16.
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


class DensePrepared(AutogradPrepared):
    """A case on an eager backend that is given dense tensors: `attend(q, k, v, scores, allowed, dense)`."""

    def __init__(self, case: Case, inputs: Inputs, attend, kernel: str) -> None:  # type: ignore[no-untyped-def]
        def compute(q: Tensor, k: Tensor, v: Tensor, scores: tuple[Score, ...]) -> Tensor:
            return attend(q, k, v, scores, permitted, dense)

        super().__init__(case, inputs, compute, kernel, reusable=True)
        with self.step("mask"):
            permitted = allowed(case, inputs.device)
            dense = DenseScores(case, inputs.device, inputs.q.dtype)
