"""Who is fastest on a case, and who is tied with it: one rule for the tables and for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from attnbench.gate import Ratio, ratio_of_medians
from attnbench.gate.statistics import FEWEST, Rounds

TIMED_COLUMNS = ["case", "backend", "status", "direction", "fwd_samples_ms", "bwd_samples_ms"]
CASE_COLUMNS = ["case", "family", "shape", "direction", "length"]


@dataclass(frozen=True)
class Front:
    """The right backends of one case.

    rounds      of the whole case by backend, empty for what was not timed
    typical_ms  by timed backend, the fastest first: the median over rounds of the least disturbed call
    tied        the others that cannot be told from the fastest, with their ratio to it
    """

    rounds: Mapping[str, Rounds] = field(default_factory=dict)
    typical_ms: Mapping[str, float] = field(default_factory=dict)
    tied: Mapping[str, Ratio | None] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The fastest and those tied with it; one name if there is a clear winner."""
        return (*list(self.typical_ms)[:1], *self.tied)


def fronts(table: pd.DataFrame) -> dict[str, Front]:
    """The front of each case that has a right answer."""
    right: dict[str, dict[str, Rounds]] = {}
    for row in table.loc[table["status"] == "ok", TIMED_COLUMNS].itertuples():
        right.setdefault(str(row.case), {}).setdefault(str(row.backend), whole_case(row))
    return {case: _front(rounds) for case, rounds in right.items()}


def whole_case(row: Any) -> Rounds:
    """The rounds of a whole case; in training, the least disturbed forward plus backward of each round."""
    if row.direction != "fwd_bwd":
        return [one for one in row.fwd_samples_ms if len(one)]
    passes = zip(row.fwd_samples_ms, row.bwd_samples_ms, strict=False)
    return [[min(forward) + min(backward)] for forward, backward in passes if len(forward) and len(backward)]


def _front(rounds: Mapping[str, Rounds]) -> Front:
    typical = {name: float(np.median([min(one) for one in some])) for name, some in rounds.items() if some}
    order = sorted(typical, key=typical.__getitem__)
    return Front(rounds, {name: typical[name] for name in order}, dict(_tied(rounds, order)))


def _tied(rounds: Mapping[str, Rounds], order: Sequence[str]) -> Iterator[tuple[str, Ratio | None]]:
    """Those whose ratio to the fastest has an interval that reaches 1, or too few samples for an interval."""
    for name in order[1:]:
        first, other = rounds[order[0]], rounds[name]
        if min(len(first), len(other)) >= FEWEST and min(map(min, other)) > max(map(max, first)):
            continue  # none of its samples reaches the fastest one's: no resampling can bring them together
        ratio = ratio_of_medians(first, other)
        if ratio is None or ratio.low is None or ratio.low <= 1:
            yield name, ratio


@dataclass(frozen=True)
class Winner:
    """The fastest right backend of one case.

    tied     the fastest and those tied with it, the fastest first: one name if there is a clear winner, none if
             nothing right was timed
    rival    the nearest of those tied with the fastest, else the next one; empty if there is no other
    ratio    the rival's time over the fastest's; None without a rival
    untimed  right backends without a time (an interpreter's clock means nothing)
    """

    case: str
    family: str
    shape: str
    direction: str
    length: int
    tied: tuple[str, ...]
    fastest_ms: float | None
    rival: str
    ratio: Ratio | None
    untimed: tuple[str, ...]

    @property
    def is_clear(self) -> bool:
        return len(self.tied) == 1


def winners(table: pd.DataFrame) -> list[Winner]:
    """One per case, in the order of the sweep; the table as `with_families` gives it."""
    front_of = fronts(table)
    cases = table[CASE_COLUMNS].drop_duplicates("case")
    return [_winner(row, front_of.get(str(row.case), Front())) for row in cases.itertuples()]


def _winner(row: Any, front: Front) -> Winner:
    fastest, following = next(iter(front.typical_ms), ""), list(front.typical_ms)[1:]
    rival = next(iter([*front.tied, *following]), "")
    is_behind = rival and rival not in front.tied
    return Winner(
        case=str(row.case),
        family=str(row.family),
        shape=str(row.shape),
        direction=str(row.direction),
        length=int(row.length),
        tied=front.names,
        fastest_ms=front.typical_ms.get(fastest),
        rival=rival,
        ratio=ratio_of_medians(front.rounds[fastest], front.rounds[rival])
        if is_behind
        else front.tied.get(rival),
        untimed=tuple(name for name, rounds in front.rounds.items() if not rounds),
    )
