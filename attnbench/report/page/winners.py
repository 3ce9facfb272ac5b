"""Which right backend is fastest on each case, by how much, and can that be told? Intervals from the raw samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnbench.gate import Ratio, ratio_of_medians
from attnbench.gate.statistics import FEWEST, Rounds

NEEDED = (
    ("case", "backend", "status", "family", "shape", "direction", "length")
    + ("fwd_samples_ms", "bwd_samples_ms")
)  # fmt: skip


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


def whole_case(row: Any) -> Rounds:
    """The rounds of a whole case: of training, the least disturbed forward plus backward of each round."""
    if row.direction != "fwd_bwd":
        return [one for one in row.fwd_samples_ms if len(one)]
    passes = zip(row.fwd_samples_ms, row.bwd_samples_ms, strict=False)
    return [[min(forward) + min(backward)] for forward, backward in passes if len(forward) and len(backward)]


def winners(table: pd.DataFrame) -> list[Winner]:
    """One per case, in the order of the sweep; the table as `with_families` gives it."""
    by_case: dict[str, dict[str, Any]] = {}
    for row in table[list(NEEDED)].itertuples():
        rows = by_case.setdefault(str(row.case), {})
        known = rows.get(str(row.backend))
        if known is None or (known.status != "ok" and row.status == "ok"):
            rows[str(row.backend)] = row
    return [_winner(rows) for rows in by_case.values()]


def _winner(rows: dict[str, Any]) -> Winner:
    first = next(iter(rows.values()))
    right = {name: whole_case(row) for name, row in rows.items() if row.status == "ok"}
    timed = {name: rounds for name, rounds in right.items() if rounds}
    typical = {name: float(np.median([min(one) for one in rounds])) for name, rounds in timed.items()}
    order = sorted(typical, key=typical.__getitem__)
    level = dict(_level(timed, order))
    rival = next(iter([*level, *order[1:]]), "")
    return Winner(
        case=str(first.case),
        family=str(first.family),
        shape=str(first.shape),
        direction=str(first.direction),
        length=int(first.length),
        level=(*order[:1], *level),
        fastest_ms=typical[order[0]] if order else None,
        rival=rival,
        ratio=level[rival] if level else ratio_of_medians(timed[order[0]], timed[rival]) if rival else None,
        untimed=tuple(name for name, rounds in right.items() if not rounds),
    )


def _level(timed: dict[str, Rounds], order: Sequence[str]) -> Iterator[tuple[str, Ratio | None]]:
    """Those whose ratio to the fastest has an interval that reaches 1, or too few samples for one; and that ratio."""
    slowest = max((max(one) for one in timed[order[0]]), default=0.0) if order else 0.0
    for name in order[1:]:
        enough = min(len(timed[name]), len(timed[order[0]])) >= FEWEST
        if enough and min(min(one) for one in timed[name]) > slowest:
            continue  # no sample of it reaches the fastest one's: no resampling can bring them together
        ratio = ratio_of_medians(timed[order[0]], timed[name])
        if ratio is None or ratio.low is None or ratio.low <= 1:
            yield name, ratio
