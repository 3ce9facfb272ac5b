"""Dense attention of a small case in float64, in steps that a hypothesis can replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.causes import Hypothesis
from attnbench.judge.oracle import Exact, log_sum_exp, probabilities
from attnbench.judge.scores import Problem, full_precision
from attnbench.problem import Full, Inputs

TILES = (16, 32, 64, 128, 256)  # of keys or queries, as kernels have them


class Dense:
    """The forward of one small case, all scores at once.

    s [B, H, Q, K] are the scores of all pairs, masked or not; `allowed` [B, H, Q, K] the pairs that the mask allows;
    v [B, H, K, Dv] and k [B, H, K, D] the values and keys per query head; sink [1, H, 1] the sink's logits, or None.
    """

    def __init__(self, inputs: Inputs, allowed: Tensor) -> None:
        self.inputs, self.case, self.allowed = inputs, inputs.case, allowed
        with full_precision():
            problem = Problem(replace(inputs, case=replace(self.case, mask=Full())))
            whole = problem.whole()
            block = problem.block(whole)
            self.s, self.raw = block.s, block.raw
            self.sink = problem.sink_logits(whole)
        self.q = inputs.q.double()
        self.k = inputs.k.double().repeat_interleave(self.case.group, 1)
        self.v = inputs.v.double().repeat_interleave(self.case.group, 1)

    def masked(self, s: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """Scores, -inf for pairs that are not allowed."""
        s = self.s if s is None else s
        return s.masked_fill(~(self.allowed if allowed is None else allowed), -torch.inf)

    def answer(self, masked: Tensor | None = None, v: Tensor | None = None) -> Exact:
        """out and LSE from masked scores and values."""
        s = self.masked() if masked is None else masked
        _, lse = log_sum_exp(s, self.sink)
        return Exact(probabilities(s, lse) @ (self.v if v is None else v), lse)

    def if_scores_are(self, cause: str, words: str, s: Callable[[], Tensor]) -> Hypothesis:
        """The hypothesis that the backend computes these scores, under the right mask."""
        return Hypothesis(cause, words, lambda: self.answer(self.masked(s())))
