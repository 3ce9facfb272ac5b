"""Which right backend is fastest on each case, by how much, and can that be told? Intervals from the raw samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.gate import Ratio, ratio_of_medians
from attnbench.report.ranking import Front, fronts

NEEDED = ["case", "family", "shape", "direction", "length"]


@dataclass(frozen=True)
class Winner:
    """Who is fastest on one case.

    `level` are the right backends that cannot be told from the fastest, the fastest first: one name where there is
    a clear winner, none where nothing right was timed. `rival` is the nearest of those that are level with the
    fastest, or else the next one, and `ratio` its time over the fastest's: empty and None where there is no other.
    `untimed` are right backends without a time (an interpreter's clock means nothing).
    """

    case: str
    family: str
    shape: str
    direction: str
    length: int
    level: tuple[str, ...]
    fastest_ms: float | None
    rival: str
    ratio: Ratio | None
    untimed: tuple[str, ...]

    @property
    def is_clear(self) -> bool:
        return len(self.level) == 1


def winners(table: pd.DataFrame) -> list[Winner]:
    """One per case, in the order of the sweep; the table as `with_families` gives it."""
    found = fronts(table)
    asked = table[NEEDED].drop_duplicates("case")
    return [_winner(row, found.get(str(row.case), Front())) for row in asked.itertuples()]


def _winner(row: Any, front: Front) -> Winner:
    fastest, following = next(iter(front.typical_ms), ""), list(front.typical_ms)[1:]
    rival = next(iter([*front.level, *following]), "")
    surely_behind = rival and rival not in front.level
    return Winner(
        case=str(row.case),
        family=str(row.family),
        shape=str(row.shape),
        direction=str(row.direction),
        length=int(row.length),
        level=front.names,
        fastest_ms=front.typical_ms.get(fastest),
        rival=rival,
        ratio=ratio_of_medians(front.rounds[fastest], front.rounds[rival])
        if surely_behind
        else front.level.get(rival),
        untimed=tuple(name for name, rounds in front.rounds.items() if not rounds),
    )
