"""Compare two result sets: ratios per case with intervals, the largest effect first."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from attnbench.gate.pairing import Pairs, ResultSet, differences, pair
from attnbench.gate.statistics import GeometricMean, Ratio, geometric_mean, ratio_of_medians
from attnbench.sweep.result import Result

PASSES = ("fwd", "bwd")
Key = TypeVar("Key", bound=tuple[str, ...])


@dataclass(frozen=True)
class Change:
    """One pass of one case on one backend: head over base. `sure` if the interval excludes 1."""

    case: str
    backend: str
    mask: str
    which: str
    ratio: Ratio

    @property
    def sure(self) -> bool:
        low, high = self.ratio.low, self.ratio.high
        return low is not None and high is not None and not low <= 1 <= high


@dataclass(frozen=True)
class StatusChange:
    """A case whose status changed."""

    case: str
    backend: str
    base: str
    head: str
    reason: str


@dataclass(frozen=True)
class Comparison:
    """`changes` by size of effect; `means` by backend and pass, `mask_means` by backend, mask and pass; `pairs` with
    what only one side has; `unlike`: what differs between the machines.
    """

    changes: tuple[Change, ...]
    means: dict[tuple[str, str], GeometricMean]
    statuses: tuple[StatusChange, ...]
    pairs: Pairs
    unlike: tuple[str, ...]
    mask_means: dict[tuple[str, str, str], GeometricMean] = field(default_factory=dict)


def compare(base: ResultSet, head: ResultSet) -> Comparison:
    """Compare every case that both sets have; NotComparable if they share none. `unlike` lists what differs."""
    pairs = pair(base, head)
    changes = [change for one, two in pairs.both for change in changes_of(one, two)]
    changes.sort(key=lambda change: -abs(math.log(change.ratio.point)))
    means = _means(changes, lambda change: (change.backend, change.which))
    mask_means = _means(changes, lambda change: (change.backend, change.mask, change.which))
    statuses = [
        StatusChange(one.case_id, one.backend, one.status, two.status, two.reason)
        for one, two in pairs.both
        if one.status != two.status
    ]
    unlike = tuple(differences(base, head, pairs))
    return Comparison(tuple(changes), means, tuple(statuses), pairs, unlike, mask_means)


def _means(changes: Sequence[Change], key: Callable[[Change], Key]) -> dict[Key, GeometricMean]:
    """The geometric mean of the ratios of each group of changes."""
    ratios: dict[Key, list[float]] = {}
    for change in changes:
        ratios.setdefault(key(change), []).append(change.ratio.point)
    return {group: geometric_mean(ratios[group]) for group in sorted(ratios)}


def changes_of(base: Result, head: Result) -> Sequence[Change]:
    """The changes of each pass that both sides timed."""
    changes = []
    for which in PASSES:
        ratio = ratio_of_medians(base.samples_ms.get(which) or [], head.samples_ms.get(which) or [])
        if ratio is not None and ratio.point > 0:
            changes.append(Change(base.case_id, base.backend, str(base.case.get("mask", "")), which, ratio))
    return changes
