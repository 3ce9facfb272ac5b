"""The rule on speed: head is slower if paired rounds say so in every stage of fresh processes.

Per round d = log(head / base), of the least call of each block. A stage is a few groups of fresh processes. Groups
are independent, the rounds within one are not: bounds resample groups, and rounds within them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from attnbench.gate.statistics import RESAMPLES, Ratio

FAIL_CONFIDENCE = 0.999  # one-sided, of the bound that a failure must clear
FEWEST_GROUPS = 2  # for any verdict but `inconclusive`
PASS_CONFIDENCE = 0.975  # one-sided, of the bound that a pass must stay below

Speed = Literal["slower", "faster", "same", "inconclusive"]
Group = np.ndarray  # d of each round of one group of processes
Stage = Sequence[Group]


@dataclass(frozen=True)
class Rule:
    """The slow-down to find (`effect` 0.05: 5 %), and the thresholds of a verdict, as logarithms of ratios.

    Slower: the median of every stage exceeds `suspected`, the pooled median `point`, its lower bound `sure`. A case
    passes if the upper bound of the pooled median is below `point`.
    """

    effect: float = 0.05
    stages: int = 3
    groups: int = 4
    rounds: int = 20

    @property
    def suspected(self) -> float:
        return 0.4 * math.log1p(self.effect)

    @property
    def point(self) -> float:
        return 0.6 * math.log1p(self.effect)

    @property
    def sure(self) -> float:
        return 0.3 * math.log1p(self.effect)


@dataclass(frozen=True)
class Outcome:
    """The verdict so far. `undecided` if another stage could change it; `why` says what it rests on."""

    kind: Speed
    median: float
    low: float
    high: float
    rounds: int
    undecided: bool
    why: str = ""

    def ratio(self, base_ms: float, head_ms: float) -> Ratio:
        """As a ratio of head over base with its interval."""
        return Ratio(math.exp(self.median), base_ms, head_ms, math.exp(self.low), math.exp(self.high))


def decide(stages: Sequence[Stage], rule: Rule, *, seed: int = 0) -> Outcome:
    """The verdict on the stages so far, of which one at least has a round."""
    groups = [group for stage in stages for group in stage if len(group)]
    if not groups:
        raise ValueError("no round to decide on")
    enough = len(groups) >= FEWEST_GROUPS
    median = float(np.median(np.concatenate(groups)))
    drawn = resampled_medians(groups, seed)
    low, high = np.quantile(drawn, (1 - PASS_CONFIDENCE, PASS_CONFIDENCE))
    surely_above, surely_below = np.quantile(drawn, (1 - FAIL_CONFIDENCE, FAIL_CONFIDENCE))
    rounds = sum(len(group) for group in groups)
    last = len(stages) >= rule.stages
    each = [float(np.median(np.concatenate(list(stage)))) for stage in stages]

    def outcome(kind: Speed, undecided: bool = False, why: str = "") -> Outcome:
        return Outcome(kind, median, float(low), float(high), rounds, undecided, why)

    if all(one > rule.suspected for one in each):
        if not last:
            return outcome("inconclusive", True, f"suspected in {len(stages)} of {rule.stages} stages")
        if median > rule.point and surely_above > rule.sure:
            return outcome("slower", why=f"in each of {rule.stages} stages of fresh processes")
        return outcome("inconclusive", why=_what_it_takes(median, float(low), rule, len(groups)))
    if high < rule.point and enough:
        faster = median < -rule.point and surely_below < -rule.sure
        return outcome("faster" if faster else "same")
    if last and enough:
        return outcome("inconclusive", why=_what_it_takes(median, float(high), rule, len(groups)))
    return outcome(
        "inconclusive",
        not last,
        "the interval is too wide" if enough else "one group of processes has no spread",
    )


def resampled_medians(groups: Sequence[Group], seed: int = 0, resamples: int = RESAMPLES) -> np.ndarray:
    """Bootstrapped pooled medians: groups are drawn with replacement, and rounds within each drawn group."""
    rng = np.random.default_rng(seed)
    rounds = min(len(group) for group in groups)
    table = np.stack([group[:rounds] for group in groups])  # [group, round]
    which = rng.integers(0, len(groups), (resamples, len(groups)))
    inside = rng.integers(0, rounds, (resamples, len(groups), rounds))
    drawn = table[which[:, :, None], inside]
    return np.median(drawn.reshape(resamples, -1), axis=1)


def _what_it_takes(median: float, bound: float, rule: Rule, groups: int) -> str:
    """How many groups of processes would move the bound past the threshold, if the noise stays the same."""
    wide, distance = abs(bound - median), abs(rule.point - median)
    if distance <= wide / 10:
        return f"too near to the threshold ({math.expm1(rule.point):.1%}) to decide; use a quieter machine"
    needed = math.ceil(groups * (wide / distance) ** 2)
    if needed <= groups:
        return "not the same in every stage; run it again on a quieter machine"
    return f"it would take about {needed} groups of fresh processes, not {groups}, or a quieter machine"
