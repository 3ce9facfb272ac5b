"""What does a reader see first? Cells of a table by case, a verdict line per backend, and the reasons; no printing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from attnbench.report.cells import (
    NOTHING,
    bytes_text,
    clean,
    factor,
    is_missing,
    milliseconds,
    percent,
    three_digits,
)
from attnbench.report.labels import STATUS_ORDER, case_text
from attnbench.report.ranking import Front, fronts
from attnbench.sweep.result import BROKEN

LISTED = (
    "ok",
    "wrong",
    "crashed",
    "error",
    "timeout",
    "oom",
)  # the others are only counted, with their reasons
FIGURES = ("forward", "backward", "TFLOP/s", "peak", "over minimum", "error/budget")


@dataclass(frozen=True)
class Line:
    """One backend on one case: the texts of its cells, and its mark.

    `mark` is `*` for a clear winner, `~` for each of several at the front (see `report.front`), else empty.
    """

    backend: str
    status: str
    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True)
class Section:
    """One case, its lines from fast to slow (who is at the front before the others), then those without a time.

    `left_out` names what is not listed, by status.
    """

    title: str
    case: str
    lines: tuple[Line, ...]
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """One backend over all cases: how often right, wrong, refused; how far behind the fastest (geometric mean).

    `fastest` counts the cases where it is at the front: the fastest, or not to be told from it.
    """

    backend: str
    version: str
    cases: int
    counts: dict[str, int]
    timed: int
    fastest: int
    behind: float | None
    worst_error: float | None

    @property
    def failed(self) -> int:
        """Cases that ended without an answer where one was due."""
        return sum(self.counts.get(status, 0) for status in BROKEN)


def total_ms(table: pd.DataFrame) -> pd.Series:
    """Milliseconds of the whole case: forward, plus backward where the case has one; NaN where either is missing."""
    backward = table["bwd_median_ms"].where(table["direction"] == "fwd_bwd", 0.0)
    return (table["fwd_median_ms"] + backward).where(table["status"] == "ok")


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """The frame with `total_ms`, `behind` (over the least of its case) and whether each row is at the `front` of it."""
    total = total_ms(table)
    found = fronts(table)
    named = [
        str(row.backend) in found.get(str(row.case), Front()).names
        for row in table[["case", "backend"]].itertuples()
    ]
    front = total.notna() & pd.Series(named, index=table.index, dtype=bool)
    least = total.groupby(table["case"]).transform("min")
    return table.assign(total_ms=total, behind=total / least, front=front)


def sections(table: pd.DataFrame) -> list[Section]:
    """The table by case, in the order of the sweep."""
    by_case: dict[str, list[Any]] = {}
    for row in with_places(table).itertuples():
        by_case.setdefault(str(row.case), []).append(row)
    return [_section(rows) for rows in by_case.values()]


def _section(rows: list[Any]) -> Section:
    def place(row: Any) -> tuple[int, bool, float]:
        total_ms = np.inf if is_missing(row.total_ms) else row.total_ms
        return STATUS_ORDER.index(row.status), not row.front, total_ms

    ordered = sorted(rows, key=place)
    mark = "*" if len({row.backend for row in rows if row.front}) == 1 else "~"
    lines = tuple(_line(row, mark if row.front else "") for row in ordered if row.status in LISTED)
    left_out: dict[str, tuple[str, ...]] = {}
    for row in ordered:
        if row.status not in LISTED:
            left_out[row.status] = (*left_out.get(row.status, ()), clean(row.backend, 60))
    first = rows[0]
    title = f"{clean(first.group, 60)}: {case_text(first)}" if first.group else case_text(first)
    return Section(clean(title), clean(first.case), lines, left_out)


def _line(row: Any, mark: str) -> Line:
    flops = (row.fwd_flops, row.bwd_flops if row.direction == "fwd_bwd" else 0)
    known = not is_missing(row.total_ms) and not any(is_missing(f) for f in flops)
    tflops = sum(int(f) for f in flops) / row.total_ms / 1e9 if known else None
    cells = (
        _time(row.fwd_median_ms, row.fwd_low_ms, row.fwd_high_ms),
        _time(row.bwd_median_ms, row.bwd_low_ms, row.bwd_high_ms),
        three_digits(tflops),
        bytes_text(row.peak_bytes),
        factor(row.peak_over_least),
        three_digits(row.error_over_budget),
    )
    return Line(clean(row.backend, 60), row.status, cells, mark)


def _time(median: Any, low: Any, high: Any) -> str:
    if is_missing(median):
        return NOTHING
    share = (high - low) / 2 / median
    # Beyond its own size a spread is said in multiples: 3000 % is no figure to read.
    return f"{milliseconds(median)} ±{percent(share) if share < 1 else factor(share)}"


def standings(table: pd.DataFrame) -> list[Standing]:
    """One line per backend, the most useful first: fewest wrong, most right, nearest to the fastest."""
    timed = with_places(table)
    found = [_standing(str(name), group) for name, group in timed.groupby("backend", sort=False)]
    return sorted(
        found, key=lambda s: (-s.counts.get("ok", 0), s.counts.get("wrong", 0), s.behind or np.inf, s.backend)
    )


def _standing(name: str, group: pd.DataFrame) -> Standing:
    behind = group["behind"].dropna()
    worst = group["error_over_budget"].max()
    versions = [v for v in group["backend_version"].dropna().unique() if v]
    return Standing(
        backend=clean(name, 60),
        version=clean(", ".join(versions), 40),
        cases=len(group),
        counts={str(k): int(v) for k, v in group["status"].value_counts().items()},
        timed=len(behind),
        fastest=int(group["front"].sum()),
        behind=float(np.exp(np.log(behind).mean())) if len(behind) else None,
        worst_error=None if is_missing(worst) else float(worst),
    )


@dataclass(frozen=True)
class Reason:
    """Why a backend gave no right answer: said once for all cases with the same words."""

    backend: str
    status: str
    reason: str
    cases: int
    example: str


def reasons(table: pd.DataFrame) -> list[Reason]:
    """The reasons of everything that is not ok, the worst status first."""
    failing = table[table["status"] != "ok"]
    rank = {status: place for place, status in enumerate(STATUS_ORDER)}
    found = [
        Reason(
            clean(backend, 60),
            str(status),
            clean(reason) or "no reason given",
            len(part),
            clean(part["case"].iloc[0]),
        )
        for (backend, status, reason), part in failing.groupby(["backend", "status", "reason"], sort=False)
    ]
    return sorted(found, key=lambda r: (rank[r.status], r.backend))


def heading(table: pd.DataFrame) -> str:
    """Where, when and on what: one line."""
    if table.empty:
        return "no results"
    parts = []
    for name in ("suite", "machine", "device", "commit"):
        seen = [clean(value, 80) for value in table[name].dropna().unique() if value]
        parts += [f"{'commit ' if name == 'commit' else ''}{', '.join(seen[:3])}"] if seen else []
    started = [s for s in table["started_at"].dropna() if s]
    parts += [clean(min(started), 19)[:10]] if started else []
    cases, backends = table["case"].nunique(), table["backend"].nunique()
    return " | ".join([*parts, f"{cases} cases x {backends} backends"])
