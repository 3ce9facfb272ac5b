"""What does the gate find on this machine, and how often does it accuse the innocent? Verdicts replayed on a recording.

A replay takes two arms of a recording as base and head, puts the groups of processes into an order of its own,
and lets the rule decide as it would have. Replays of one recording share samples, so their intervals are too
narrow for a claim about other days; a case's first replay of each pair of arms is independent of other cases'.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnbench.errors import AttnbenchError
from attnbench.gate.recording import SAME, SLOWER, Recorded
from attnbench.gate.sequential import Rule, decide

NOTHING = "no change"
MEAN_RULE = 0.05  # pytest-benchmark --benchmark-compare-fail=mean:5%
POWER_NEEDED = 0.9
FALSE_ALARMS_ALLOWED = 0.01  # of verdicts, at most, for a machine to be fit


@dataclass
class Rate:
    """How often head was called what, where it was slower by a known share (0: not at all)."""

    change: str
    share: float
    verdicts: int = 0
    slower: int = 0
    faster: int = 0
    inconclusive: int = 0
    stages: int = 0
    rounds: int = 0
    means_compared: int = 0
    means_flagged: int = 0  # what comparing the means of two separate runs at 5 % says of the same samples
    cases: set[tuple[str, str, str, str]] = field(default_factory=set)

    def interval(self, count: int) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval of count / verdicts."""
        from scipy.stats import binomtest

        found = binomtest(count, self.verdicts).proportion_ci(0.95, method="exact")
        return float(found.low), float(found.high)

    def to_json(self) -> dict[str, Any]:
        """Counts and rates as JSON values."""
        low, high = self.interval(self.slower)
        return {
            "change": self.change,
            "share": self.share,
            "comparisons": len(self.cases),
            "verdicts": self.verdicts,
            "slower": self.slower,
            "slower_rate": self.slower / self.verdicts,
            "slower_low": low,
            "slower_high": high,
            "faster": self.faster,
            "inconclusive": self.inconclusive,
            "rounds_mean": self.rounds / self.verdicts,
            "stages_mean": self.stages / self.verdicts,
            "means_of_two_runs_flagged_rate": self.means_flagged / max(1, self.means_compared),
        }


@dataclass(frozen=True)
class Calibration:
    """The rates by change, and the rule that they are of."""

    rates: tuple[Rate, ...]
    rule: Rule

    @property
    def alarms(self) -> Rate:
        return next(rate for rate in self.rates if rate.change == NOTHING)

    @property
    def smallest_effect(self) -> float | None:
        """The smallest slow-down of those tried that is found often enough; None where none is."""
        found = [r.share for r in self.rates if r.share and r.slower >= POWER_NEEDED * r.verdicts]
        return min(found, default=None)

    @property
    def fit(self) -> bool:
        """Whether the machine may gate on the rule's effect: it finds it, and accuses next to nobody."""
        smallest = self.smallest_effect
        quiet = self.alarms.slower <= FALSE_ALARMS_ALLOWED * self.alarms.verdicts
        return quiet and smallest is not None and smallest <= self.rule.effect + 1e-9

    def to_json(self) -> dict[str, Any]:
        """The calibration as JSON values."""
        return {
            "fit": self.fit,
            "effect": self.rule.effect,
            "smallest_effect": self.smallest_effect,
            "groups_a_stage": self.rule.groups,
            "stages": self.rule.stages,
            "rates": [rate.to_json() for rate in self.rates],
        }


def pairs_of_arms() -> dict[str, list[tuple[str, str]]]:
    """Change -> the pairs (base, head) that show it."""
    same = [(one, two) for one in SAME for two in SAME if one != two]
    return {NOTHING: same} | {name: [(one, name) for one in SAME] for name in SLOWER}


def calibrate(
    recordings: Sequence[Recorded], effect: float = 0.05, *, repeats: int = 4, seed: int = 0
) -> Calibration:
    """Replay `repeats` verdicts of every pair of arms of every case and pass.

    The groups of a recording are dealt to the stages, so a recording of 12 gives three stages of four.
    """
    if not recordings:
        raise AttnbenchError(
            "nothing was timed in two groups of processes; give --minutes more, or another --backend"
        )
    stages = Rule().stages
    least = min(len(one.least_ms[SAME[0]]) for one in recordings)
    if least < stages:
        raise AttnbenchError(
            f"{least} groups of processes are too few for {stages} stages; give --minutes more"
        )
    rule = Rule(effect, groups=least // stages)
    rng = np.random.default_rng(seed)
    rates = []
    for change, pairs in pairs_of_arms().items():
        rate = Rate(change, SLOWER.get(change, 0.0))
        for one in recordings:
            for base, head in pairs:
                d = np.log(one.least_ms[head] / one.least_ms[base])  # [group, round]
                for _ in range(repeats):
                    _replay(rate, d[rng.permutation(len(d))], rule, int(rng.integers(1 << 31)))
                rate.cases.add((one.backend, one.case, one.which, f"{base}|{head}"))
                _compare_means(rate, one.mean_ms[base], one.mean_ms[head])
        rates.append(rate)
    return Calibration(tuple(rates), rule)


def _replay(rate: Rate, d: np.ndarray, rule: Rule, seed: int) -> None:
    for stages in range(1, rule.stages + 1):
        dealt = [list(d[s * rule.groups : (s + 1) * rule.groups]) for s in range(stages)]
        outcome = decide(dealt, rule, seed=seed)
        if not outcome.undecided:
            break
    rate.verdicts += 1
    rate.slower += outcome.kind == "slower"
    rate.faster += outcome.kind == "faster"
    rate.inconclusive += outcome.kind == "inconclusive"
    rate.stages += stages
    rate.rounds += outcome.rounds


def _compare_means(rate: Rate, base_ms: np.ndarray, head_ms: np.ndarray) -> None:
    """Each group of base beside each other group of head: what two separate runs would have shown."""
    base, head = base_ms.mean(axis=1), head_ms.mean(axis=1)
    for i in range(len(base)):
        for j in range(len(head)):
            if i != j:
                rate.means_compared += 1
                rate.means_flagged += bool(head[j] > (1 + MEAN_RULE) * base[i])
