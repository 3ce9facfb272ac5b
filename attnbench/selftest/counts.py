"""The tally of a self-test: kills and false alarms by criterion, dtype and direction, and their rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from attnbench.conformance.battery import LEVELS
from attnbench.errors import AttnbenchError
from attnbench.problem.case import DIRECTIONS
from attnbench.selftest.criteria import CRITERIA, OURS
from attnbench.selftest.diagnosis import Diagnosis

DTYPE_ORDER = ("bf16", "fp16", "fp32")


@dataclass
class Count:
    """Alarms of one criterion in one dtype and direction: over mutants (kills) or right answers (false alarms)."""

    alarms: set[str] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)


Key = tuple[str, str, str]  # criterion, dtype, direction
CheckKey = tuple[str, str, str]  # family or ALL_CASES, level, dtype
ALL_CASES = "all cases"


@dataclass
class Tally:
    """The result of one job of the self-test; tallies of different dtypes and seeds add up.

    kills           (criterion, dtype, direction) -> mutants tried and killed
    false_alarms    the same over verdicts on right answers, each named `implementation | trial | seed`
    killers         dtype -> mutant -> names of the trials on which attnbench kills it
    reasons         of attnbench's false alarms, and of the first kill of each mutant
    diagnoses       dtype -> the causes named for each mutant
    checks          (family, level, dtype) -> mutants that `check` is to find there, and found
    check_alarms    the same over verdicts on right implementations
    """

    kills: dict[Key, Count] = field(default_factory=dict)
    false_alarms: dict[Key, Count] = field(default_factory=dict)
    killers: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    diagnoses: dict[str, list[Diagnosis]] = field(default_factory=dict)
    checks: dict[CheckKey, Count] = field(default_factory=dict)
    check_alarms: dict[CheckKey, Count] = field(default_factory=dict)

    def add(self, other: Tally) -> None:
        for mine, theirs in (
            (self.kills, other.kills),
            (self.false_alarms, other.false_alarms),
            (self.checks, other.checks),
            (self.check_alarms, other.check_alarms),
        ):
            for key, count in theirs.items():
                total = mine.setdefault(key, Count())
                total.alarms |= count.alarms
                total.tried |= count.tried
        for dtype, by_mutant in other.killers.items():
            for name, trials in by_mutant.items():
                self.killers.setdefault(dtype, {}).setdefault(name, []).extend(trials)
        self.reasons |= other.reasons
        for dtype, diagnoses in other.diagnoses.items():
            self.diagnoses.setdefault(dtype, []).extend(diagnoses)


def record(
    counts: dict[Key, Count],
    name: str,
    dtype: str,
    alarms: dict[tuple[str, str], str],
    tried: Iterable[tuple[str, str]],
) -> None:
    """Count one answer under each (criterion, direction) that judged it, and the alarms among them."""
    for criterion, direction in tried:
        count = counts.setdefault((criterion, dtype, direction), Count())
        count.tried.add(name)
        if (criterion, direction) in alarms:
            count.alarms.add(name)


def interval(alarms: int, tried: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate."""
    from scipy.stats import binomtest

    if tried == 0:
        raise AttnbenchError(
            "a rate over nothing has no interval; run at least one mutant or right implementation"
        )
    limits = binomtest(alarms, tried).proportion_ci(confidence, method="exact")
    return float(limits.low), float(limits.high)


def _order(key: Key) -> tuple[int, int, int]:
    criterion, dtype, direction = key
    return CRITERIA.index(criterion), DTYPE_ORDER.index(dtype), DIRECTIONS.index(direction)


def table(tally: Tally) -> list[dict[str, Any]]:
    """One row per (criterion, dtype, direction): counts, rates and their intervals."""
    keys = sorted(tally.kills.keys() | tally.false_alarms.keys(), key=_order)
    return _rows(("criterion", "dtype", "direction"), keys, tally.kills, tally.false_alarms)


def check_table(tally: Tally) -> list[dict[str, Any]]:
    """One row per (cases, level, dtype) of `check`: counts, rates and their intervals."""
    keys = sorted(tally.checks.keys() | tally.check_alarms.keys(), key=_check_order)
    return _rows(("cases", "level", "dtype"), keys, tally.checks, tally.check_alarms)


def _check_order(key: CheckKey) -> tuple[bool, int, str, int]:
    cases, level, dtype = key
    return cases != ALL_CASES, LEVELS.index(level), cases, DTYPE_ORDER.index(dtype)


def _rows(
    names: tuple[str, str, str],
    keys: Iterable[tuple[str, str, str]],
    kills: dict[tuple[str, str, str], Count],
    false_alarms: dict[tuple[str, str, str], Count],
) -> list[dict[str, Any]]:
    rows = []
    for key in keys:
        row: dict[str, Any] = dict(zip(names, key, strict=True))
        for what, counts in (("kills", kills), ("false_alarms", false_alarms)):
            count = counts.get(key)
            if count is None or not count.tried:
                continue
            low, high = interval(len(count.alarms), len(count.tried))
            row |= {
                what: len(count.alarms),
                f"{what}_of": len(count.tried),
                f"{what}_low": low,
                f"{what}_high": high,
            }
        rows.append(row)
    return rows


def missed_by_check(tally: Tally) -> dict[str, list[str]]:
    """`cases, level, dtype` -> the mutants that `check` does not find there."""
    return {
        ", ".join(key): sorted(tally.checks[key].tried - tally.checks[key].alarms)
        for key in sorted(tally.checks, key=_check_order)
        if tally.checks[key].tried - tally.checks[key].alarms
    }


def survivors(tally: Tally, criterion: str = OURS) -> dict[str, list[str]]:
    """dtype -> the mutants that this criterion misses although it sees the backward."""
    return {
        dtype: sorted(count.tried - count.alarms)
        for (c, dtype, direction), count in tally.kills.items()
        if c == criterion and direction == "fwd_bwd" and count.tried - count.alarms
    }


def only_killers(tally: Tally, dtype: str) -> dict[str, list[str]]:
    """trial -> the mutants that it alone kills in this dtype; meaningful if every mutant met every trial."""
    by_trial: dict[str, list[str]] = {}
    for name, trials in sorted(tally.killers.get(dtype, {}).items()):
        if len(set(trials)) == 1:
            by_trial.setdefault(trials[0], []).append(name)
    return dict(sorted(by_trial.items()))
