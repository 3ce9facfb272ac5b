"""Who is fastest on a case, and who cannot be told from it? One rule for the tables and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from attnbench.gate import Ratio, ratio_of_medians
from attnbench.gate.statistics import FEWEST, Rounds

NEEDED = ["case", "backend", "status", "direction", "fwd_samples_ms", "bwd_samples_ms"]


@dataclass(frozen=True)
class Front:
    """The right backends of one case.

    `rounds` of the whole case by backend, none of what was not timed; `typical_ms` of the timed ones, the fastest
    first: the median over rounds of the least disturbed call; `level` are those that cannot be told from the fastest,
    with their ratio to it.
    """

    rounds: Mapping[str, Rounds] = field(default_factory=dict)
    typical_ms: Mapping[str, float] = field(default_factory=dict)
    level: Mapping[str, Ratio | None] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The fastest and those that are level with it; one name where there is a clear winner."""
        return (*list(self.typical_ms)[:1], *self.level)


def fronts(table: pd.DataFrame) -> dict[str, Front]:
    """By case; none of a case on which nobody was right."""
    right: dict[str, dict[str, Rounds]] = {}
    for row in table.loc[table["status"] == "ok", NEEDED].itertuples():
        right.setdefault(str(row.case), {}).setdefault(str(row.backend), whole_case(row))
    return {case: _front(rounds) for case, rounds in right.items()}


def whole_case(row: Any) -> Rounds:
    """The rounds of a whole case: of training, the least disturbed forward plus backward of each round."""
    if row.direction != "fwd_bwd":
        return [one for one in row.fwd_samples_ms if len(one)]
    passes = zip(row.fwd_samples_ms, row.bwd_samples_ms, strict=False)
    return [[min(forward) + min(backward)] for forward, backward in passes if len(forward) and len(backward)]


def _front(rounds: Mapping[str, Rounds]) -> Front:
    typical = {name: float(np.median([min(one) for one in some])) for name, some in rounds.items() if some}
    order = sorted(typical, key=typical.__getitem__)
    return Front(rounds, {name: typical[name] for name in order}, dict(_level(rounds, order)))


def _level(rounds: Mapping[str, Rounds], order: Sequence[str]) -> Iterator[tuple[str, Ratio | None]]:
    """Those whose ratio to the fastest has an interval that reaches 1, or too few samples for an interval."""
    for name in order[1:]:
        first, other = rounds[order[0]], rounds[name]
        if min(len(first), len(other)) >= FEWEST and min(map(min, other)) > max(map(max, first)):
            continue  # no sample of it reaches the fastest one's: no resampling can bring them together
        ratio = ratio_of_medians(first, other)
        if ratio is None or ratio.low is None or ratio.low <= 1:
            yield name, ratio
