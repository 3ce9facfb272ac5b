"""What did a self-test count? Kills and false alarms by criterion, dtype and direction, and their rates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from attnbench.errors import AttnbenchError
from attnbench.selftest.criteria import CRITERIA, DIRECTIONS, OURS
from attnbench.selftest.diagnosis import Diagnosis

DTYPES = ("bf16", "fp16", "fp32")


@dataclass
class Count:
    """Alarms of one criterion in one dtype and direction: over mutants (kills) or right answers (false alarms)."""

    alarms: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)


Key = tuple[str, str, str]  # criterion, dtype, direction


@dataclass
class Part:
    """What one part of the self-test found; parts of different dtypes and seeds add up.

    kills           (criterion, dtype, direction) -> mutants asked and killed
    false_alarms    the same over verdicts on right answers, each named `implementation | trial | seed`
    killers         dtype -> mutant -> names of the trials on which attnbench kills it
    reasons         of our own false alarms, and of the first kill of each mutant
    diagnoses       dtype -> what was named as the cause of each mutant
    """

    kills: dict[Key, Count] = field(default_factory=dict)
    false_alarms: dict[Key, Count] = field(default_factory=dict)
    killers: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    diagnoses: dict[str, list[Diagnosis]] = field(default_factory=dict)

    def add(self, other: Part) -> None:
        for mine, theirs in ((self.kills, other.kills), (self.false_alarms, other.false_alarms)):
            for key, count in theirs.items():
                here = mine.setdefault(key, Count())
                here.alarms |= count.alarms
                here.asked |= count.asked
        for dtype, found in other.killers.items():
            for name, trials in found.items():
                self.killers.setdefault(dtype, {}).setdefault(name, []).extend(trials)
        self.reasons |= other.reasons
        for dtype, named in other.diagnoses.items():
            self.diagnoses.setdefault(dtype, []).extend(named)


def record(
    counts: dict[Key, Count],
    name: str,
    dtype: str,
    alarms: dict[tuple[str, str], str],
    asked: Iterable[tuple[str, str]],
) -> None:
    """Enter what one answer of that name was asked, and which (criterion, direction) found it wrong."""
    for criterion, direction in asked:
        count = counts.setdefault((criterion, dtype, direction), Count())
        count.asked.add(name)
        if (criterion, direction) in alarms:
            count.alarms.add(name)


def interval(alarms: int, asked: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate."""
    from scipy.stats import binomtest

    if asked == 0:
        raise AttnbenchError(
            "a rate over nothing has no interval; run at least one mutant or right implementation"
        )
    found = binomtest(alarms, asked).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def table(part: Part) -> list[dict[str, Any]]:
    """One row a (criterion, dtype, direction): counts, rates and their intervals."""
    rows = []
    order = lambda key: (CRITERIA.index(key[0]), DTYPES.index(key[1]), DIRECTIONS.index(key[2]))  # noqa: E731
    for key in sorted(part.kills.keys() | part.false_alarms.keys(), key=order):
        row: dict[str, Any] = dict(zip(("criterion", "dtype", "direction"), key, strict=True))
        for what, counts in (("kills", part.kills), ("false_alarms", part.false_alarms)):
            count = counts.get(key)
            if count is None or not count.asked:
                continue
            low, high = interval(len(count.alarms), len(count.asked))
            row |= {
                what: len(count.alarms),
                f"{what}_of": len(count.asked),
                f"{what}_low": low,
                f"{what}_high": high,
            }
        rows.append(row)
    return rows


def survivors(part: Part, criterion: str = OURS) -> dict[str, list[str]]:
    """dtype -> the mutants that this criterion does not find with a backward."""
    return {
        dtype: sorted(count.asked - count.alarms)
        for (c, dtype, direction), count in part.kills.items()
        if c == criterion and direction == "fwd_bwd" and count.asked - count.alarms
    }


def only_killers(part: Part, dtype: str) -> dict[str, list[str]]:
    """trial -> the mutants that it alone kills in this dtype; meaningful where every mutant met every trial."""
    found: dict[str, list[str]] = {}
    for name, trials in sorted(part.killers.get(dtype, {}).items()):
        if len(set(trials)) == 1:
            found.setdefault(trials[0], []).append(name)
    return dict(sorted(found.items()))
