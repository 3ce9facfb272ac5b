"""A robust ratio of two sets of rounds with a bootstrap interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

FEWEST = 5  # rounds or samples on either side, below which an interval would be invented
RESAMPLES = 2000
CONFIDENCE = 0.95

Rounds = Sequence[Sequence[float]]


@dataclass(frozen=True)
class Ratio:
    """head over base; `low` and `high` bound it at CONFIDENCE, None if there are too few samples.

    `apart`: every sample of head is slower than every one of base.
    """

    point: float
    base_ms: float
    head_ms: float
    low: float | None = None
    high: float | None = None
    apart: bool = False


def units(rounds: Rounds, of_rounds: bool) -> np.ndarray:
    """What is resampled: the minimum of each round (the least disturbed call), or every sample."""
    if of_rounds:
        return np.asarray([min(one) for one in rounds if len(one)], dtype=float)
    return np.asarray([ms for one in rounds for ms in one], dtype=float)


def ratio_of_medians(base: Rounds, head: Rounds, *, seed: int = 0) -> Ratio | None:
    """The median of head over the median of base; None if either has no sample or no time passed.

    With at least FEWEST rounds on both sides the medians are of round minima and whole rounds are resampled,
    since the calls of a round are not independent; with fewer, samples are. Percentile bootstrap, unpaired:
    the rounds of two separate runs have no common index.
    """
    of_rounds = min(sum(1 for one in base if len(one)), sum(1 for one in head if len(one))) >= FEWEST
    one, two = units(base, of_rounds), units(head, of_rounds)
    if not one.size or not two.size or np.median(one) <= 0:
        return None
    base_ms, head_ms = float(np.median(one)), float(np.median(two))
    point = head_ms / base_ms
    apart = bool(two.min() > one.max())
    if min(one.size, two.size) < FEWEST:
        return Ratio(point, base_ms, head_ms, apart=apart)
    rng = np.random.default_rng(seed)
    drawn = [
        np.median(side[rng.integers(0, side.size, (RESAMPLES, side.size))], axis=1) for side in (one, two)
    ]
    tail = 100 * (1 - CONFIDENCE) / 2
    low, high = np.percentile(drawn[1] / drawn[0], (tail, 100 - tail))
    return Ratio(point, base_ms, head_ms, float(low), float(high), apart)


@dataclass(frozen=True)
class GeometricMean:
    """The geometric mean of ratios and their geometric standard deviation (1.0: all alike)."""

    mean: float
    spread: float
    count: int


def geometric_mean(ratios: Sequence[float]) -> GeometricMean:
    """Of at least one positive ratio."""
    logs = np.log(np.asarray(ratios, dtype=float))
    spread = float(np.exp(logs.std(ddof=1))) if len(logs) > 1 else math.nan
    return GeometricMean(float(np.exp(logs.mean())), spread, len(logs))
