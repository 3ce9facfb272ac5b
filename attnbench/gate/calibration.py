"""Calibrate the gate on this machine: its power and false-alarm rate, from verdicts replayed on a recording.

A replay takes two arms of a recording as base and head, orders the groups of processes at random, and applies the
rule as a gate would. Replays of one recording share samples, so their intervals are too narrow for a claim about
other days; the first replay of each case and pair of arms is independent of those of other cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnbench.device import resolve_device
from attnbench.errors import AttnbenchError, BackendUnavailable
from attnbench.gate.options import GateOptions
from attnbench.gate.recording import SAME, SLOWER, Recorded, frame_of, record, recorded, write_rows
from attnbench.gate.sequential import Rule, decide
from attnbench.sweep.slots import make_slots
from attnbench.sweep.suite import load_suite

NO_CHANGE = "no change"
MEAN_RULE = 0.05  # pytest-benchmark --benchmark-compare-fail=mean:5%
MIN_POWER = 0.9  # the share of slow-downs that a machine must show to be fit
MAX_FALSE_ALARM_RATE = 0.01
CALIBRATED_BACKENDS = ["naive"]  # unless others are named


@dataclass
class Rate:
    """Counts of verdicts on a head that is slower by a known share (0: the same code)."""

    change: str
    share: float
    verdicts: int = 0
    slower: int = 0
    faster: int = 0
    inconclusive: int = 0
    stages: int = 0
    rounds: int = 0
    means_compared: int = 0
    means_flagged: int = 0  # by comparing the means of two separate runs at 5 %, on the same samples
    cases: set[tuple[str, str, str, str]] = field(default_factory=set)

    def interval(self, count: int) -> tuple[float, float]:
        """Clopper and Pearson's 95 % interval of count / verdicts."""
        from scipy.stats import binomtest

        bounds = binomtest(count, self.verdicts).proportion_ci(0.95, method="exact")
        return float(bounds.low), float(bounds.high)

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
    """The rates by change, and the rule that gave them."""

    rates: tuple[Rate, ...]
    rule: Rule

    @property
    def alarms(self) -> Rate:
        return next(rate for rate in self.rates if rate.change == NO_CHANGE)

    @property
    def smallest_effect(self) -> float | None:
        """The smallest slow-down tried that is found often enough; None if none is."""
        shares = [r.share for r in self.rates if r.share and r.slower >= MIN_POWER * r.verdicts]
        return min(shares, default=None)

    @property
    def fit(self) -> bool:
        """Whether the machine can gate on the rule's effect: enough power, few enough false alarms."""
        smallest = self.smallest_effect
        quiet = self.alarms.slower <= MAX_FALSE_ALARM_RATE * self.alarms.verdicts
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
    """The pairs (base, head) of arms that show each change."""
    same = [(one, two) for one in SAME for two in SAME if one != two]
    return {NO_CHANGE: same} | {name: [(one, name) for one in SAME] for name in SLOWER}


def calibrate_machine(options: GateOptions, tell: Callable[[str], None]) -> Calibration:
    """Record backends on this machine, unchanged and slowed, and replay the gate's verdicts on the recording."""
    device = resolve_device(options.device)
    planned = load_suite(options.suite).cases(device)
    backends = options.backends or CALIBRATED_BACKENDS
    # Nothing is started: a missing library is reported before the minutes are spent.
    for slot in make_slots(backends, device):
        if slot.given_up is not None:
            raise BackendUnavailable(f"{slot.name}: {slot.given_up.reason}")
    tell(
        f"device {device}, suite {options.suite}: {', '.join(backends)}, unchanged and slowed by 3, 5 and 10 %"
    )
    threads = options.threads_on(device)
    rows = record(planned, backends, device, threads=threads, minutes=options.minutes, tell=tell)
    if options.record is not None:
        write_rows(rows, options.record)
    return calibrate(recorded(frame_of(rows)), options.effect)


def calibrate(
    recordings: Sequence[Recorded], effect: float = 0.05, *, repeats: int = 4, seed: int = 0
) -> Calibration:
    """Replay `repeats` verdicts of every pair of arms of every case and pass.

    The groups of a recording are split over the stages: a recording of 12 gives three stages of four.
    """
    if not recordings:
        raise AttnbenchError(
            "nothing was timed in two groups of processes; raise --minutes, or take another --backend"
        )
    stages = Rule().stages
    least = min(len(one.least_ms[SAME[0]]) for one in recordings)
    if least < stages:
        raise AttnbenchError(f"{least} groups of processes are too few for {stages} stages; raise --minutes")
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
    """Compare each group of base with each other group of head, as two separate runs would be."""
    base, head = base_ms.mean(axis=1), head_ms.mean(axis=1)
    for i in range(len(base)):
        for j in range(len(head)):
            if i != j:
                rate.means_compared += 1
                rate.means_flagged += bool(head[j] > (1 + MEAN_RULE) * base[i])
