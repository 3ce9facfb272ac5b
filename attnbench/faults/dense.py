"""Dense attention of a small case in float64, on some or all of its rows, in steps that a hypothesis can replace."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.judge.oracle import Exact, log_sum_exp, probabilities
from attnbench.judge.scores import Problem, full_precision
from attnbench.problem import ALiBi, Full, Inputs, Score

TILES = (16, 32, 64, 128, 256)  # of keys or queries, as kernels have them


class Dense:
    """The forward of one small case, all scores of some rows at once.

    `rows` int64 [R] are the queries that are computed (all, unless some are given), `allowed` [B, H, Q, K] the pairs
    that the mask allows, of every row. s, raw [B, H, R, K] are the scores after and before all score changes, masked
    or not; `terms` are the added score changes by kind, each broadcastable to s; v [B, H, K, Dv] and k [B, H, K, D]
    the values and keys per query head; sink [1, H, 1] the sink's logits, or None.
    """

    def __init__(self, inputs: Inputs, allowed: Tensor, rows: Tensor | None = None) -> None:
        self.inputs, self.case, self.allowed = inputs, inputs.case, allowed
        self.rows = torch.arange(self.case.q_len, device=allowed.device) if rows is None else rows
        self.keys = torch.arange(self.case.k_len, device=allowed.device)
        with full_precision():
            problem = Problem(replace(inputs, case=replace(self.case, mask=Full())))
            whole = replace(problem.whole(), rows=self.rows)
            self.sink = problem.sink_logits(whole)
            kinds = [kind for kind in ("bias", "relative", "alibi") if getattr(problem, kind) is not None]
            self.terms_of_all_rows = dict(zip(kinds, problem.added(problem.whole()), strict=True))
            self.terms = {kind: self.of_rows(term) for kind, term in self.terms_of_all_rows.items()}
        self.q = inputs.q[:, :, self.rows].double()
        self.k = inputs.k.double().repeat_interleave(self.case.group, 1)
        self.v = inputs.v.double().repeat_interleave(self.case.group, 1)
        self.cap: float | None = next((s.cap for s in inputs.scores if s.kind == "softcap"), None)  # type: ignore[attr-defined]
        self.raw = self.product()
        self.s = self.scored()

    def of_rows(self, x: Tensor) -> Tensor:
        """The computed rows of a tensor [., ., Q|1, .] of all rows."""
        return x if x.shape[2] == 1 else x[:, :, self.rows]

    def score(self, kind: str) -> Score | None:
        """The score change of a kind, or None."""
        return next((score for score in self.inputs.scores if score.kind == kind), None)

    def product(self, q: Tensor | None = None, k: Tensor | None = None, scale: float | None = None) -> Tensor:
        """q k^T times the scale: [B, H, R, K]; q [B, H, R, D] and k [B, H, K, D] are per query head."""
        q, k = self.q if q is None else q, self.k if k is None else k
        return q @ k.transpose(-1, -2) * (self.case.softmax_scale if scale is None else scale)

    def capped(self, raw: Tensor) -> Tensor:
        return raw if self.cap is None else self.cap * torch.tanh(raw / self.cap)

    def scored(self, raw: Tensor | None = None, **terms: Tensor | float) -> Tensor:
        """Scores from other products, or with other terms (0 leaves one out)."""
        s = self.capped(self.raw if raw is None else raw)
        for term in (self.terms | terms).values():
            s = s + term
        return s

    def distances(self, centre: Tensor | None = None) -> Tensor:
        """|p - j| of each pair, [R, K]; `centre` [R, 1] stands for the queries' own places p."""
        p = self.rows[:, None] + self.case.k_len - self.case.q_len if centre is None else centre
        return (p - self.keys).abs().double()

    def slopes(self, alibi: ALiBi) -> Tensor:
        """ALiBi's slopes, [H, 1, 1]."""
        slopes = alibi.slopes_for(self.case.q_heads)
        return torch.tensor(slopes, dtype=torch.float64, device=self.keys.device)[:, None, None]

    def masked(self, s: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """Scores, -inf for pairs that are not allowed; `allowed` is of every row."""
        s = self.s if s is None else s
        pairs = (self.allowed if allowed is None else allowed)[:, :, self.rows]
        return s.masked_fill(~pairs, -torch.inf)

    def answer(
        self, masked: Tensor | None = None, v: Tensor | None = None, sink: Tensor | None = None
    ) -> Exact:
        """out and LSE of the rows from masked scores, values and the sink's logits."""
        s = self.masked() if masked is None else masked
        _, lse = log_sum_exp(s, self.sink if sink is None else sink)
        return Exact(probabilities(s, lse) @ (self.v if v is None else v), lse)

    def if_scores_are(self, cause: str, words: str, s: Callable[[], Tensor]) -> Hypothesis:
        """The hypothesis that the backend computes these scores, under the right mask."""
        return Hypothesis(cause, words, lambda: self.answer(self.masked(s())))

    def if_reading(
        self,
        cause: str,
        words: str,
        k: Callable[[], Tensor] | None = None,
        v: Callable[[], Tensor] | None = None,
    ) -> Hypothesis:
        """The hypothesis that the backend reads other keys or values, per query head, at the same places."""

        def make() -> Exact:
            s = None if k is None else self.masked(self.scored(self.product(k=k())))
            return self.answer(s, None if v is None else v())

        return Hypothesis(cause, words, make)
