"""What a reader sees first: rows by case, a standing per backend, and the reasons; texts only, no printing."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from attnbench.report.cells import NOTHING, clean, factor, is_missing, milliseconds, percent, three_digits
from attnbench.report.columns import titled
from attnbench.report.labels import case_text
from attnbench.report.ranking import Front, fronts
from attnbench.statuses import BROKEN, DECLINED, STATUSES

# The first three combine columns of the frame; the others are its columns that have a title.
FIGURES = ("forward", "backward", "TFLOP/s", *(column.title for column in titled()))


@dataclass(frozen=True)
class CaseRow:
    """One backend on one case: the texts of its cells, and its mark.

    `mark` is `*` for a clear winner, `~` for each of several that are tied, else empty (see `ranking.Front`).
    """

    backend: str
    status: str
    cells: tuple[str, ...]
    mark: str = ""


@dataclass(frozen=True)
class Section:
    """One case: its rows from fast to slow (those at the front first), then those without a time.

    `left_out` names the backends that declined, by status.
    """

    title: str
    case: str
    rows: tuple[CaseRow, ...]
    left_out: dict[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Standing:
    """One backend over all cases: how often right, wrong, refused; how far behind the fastest (geometric mean).

    `fastest` counts the cases on which it is at the front: the fastest, or tied with it. `memory` is the geometric mean
    of its peak over the minimum.
    """

    backend: str
    version: str
    cases: int
    counts: dict[str, int]
    timed: int
    fastest: int
    behind: float | None
    worst_error: float | None
    memory: float | None = None

    @property
    def failed(self) -> int:
        """Cases that ended without an answer where one was due."""
        return sum(self.counts.get(status, 0) for status in BROKEN)

    @property
    def declined(self) -> int:
        """Cases that ended without an answer where none was due."""
        return sum(self.counts.get(status, 0) for status in DECLINED)


def total_ms(table: pd.DataFrame) -> pd.Series:
    """Milliseconds of the whole case: forward, plus backward if the case has one; NaN if either is missing."""
    backward = table["bwd_median_ms"].where(table["direction"] == "fwd_bwd", 0.0)
    return (table["fwd_median_ms"] + backward).where(table["status"] == "ok")


def with_places(table: pd.DataFrame) -> pd.DataFrame:
    """The frame with `total_ms`, `behind` (over the least of its case) and `front` (whether a row is at the front)."""
    total = total_ms(table)
    front_of = fronts(table)
    at_front = [
        str(row.backend) in front_of.get(str(row.case), Front()).names
        for row in table[["case", "backend"]].itertuples()
    ]
    front = total.notna() & pd.Series(at_front, index=table.index, dtype=bool)
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
        return STATUSES.index(row.status), not row.front, total_ms

    ordered = sorted(rows, key=place)
    mark = "*" if len({row.backend for row in rows if row.front}) == 1 else "~"
    shown = tuple(_case_row(row, mark if row.front else "") for row in ordered if row.status not in DECLINED)
    left_out: dict[str, tuple[str, ...]] = {}
    for row in ordered:
        if row.status in DECLINED:
            left_out[row.status] = (*left_out.get(row.status, ()), clean(row.backend, 60))
    first = rows[0]
    title = f"{clean(first.group, 60)}: {case_text(first)}" if first.group else case_text(first)
    return Section(clean(title), clean(first.case), shown, left_out)


def _case_row(row: Any, mark: str) -> CaseRow:
    flops = (row.fwd_flops, row.bwd_flops if row.direction == "fwd_bwd" else 0)
    has_rate = not is_missing(row.total_ms) and not any(is_missing(f) for f in flops)
    tflops = sum(int(f) for f in flops) / row.total_ms / 1e9 if has_rate else None
    cells = (
        _time(row.fwd_median_ms, row.fwd_low_ms, row.fwd_high_ms),
        _time(row.bwd_median_ms, row.bwd_low_ms, row.bwd_high_ms),
        three_digits(tflops),
        *(column.cell(row) for column in titled()),
    )
    return CaseRow(clean(row.backend, 60), row.status, cells, mark)


def _time(median: Any, low: Any, high: Any) -> str:
    if is_missing(median):
        return NOTHING
    share = (high - low) / 2 / median
    # Beyond its own size a spread reads better as a multiple than as 3000 %.
    return f"{milliseconds(median)} ±{percent(share) if share < 1 else factor(share)}"


def standings(table: pd.DataFrame) -> list[Standing]:
    """One per backend, the most useful first: most right, fewest wrong, nearest to the fastest."""
    placed = with_places(table)
    unordered = [_standing(str(name), group) for name, group in placed.groupby("backend", sort=False)]
    return sorted(
        unordered,
        key=lambda s: (-s.counts.get("ok", 0), s.counts.get("wrong", 0), s.behind or np.inf, s.backend),
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
        behind=_geometric_mean(behind),
        worst_error=None if is_missing(worst) else float(worst),
        memory=_geometric_mean(group["peak_over_least"].dropna()),
    )


def _geometric_mean(values: pd.Series) -> float | None:
    positive = values[values > 0]
    return float(np.exp(np.log(positive).mean())) if len(positive) else None


@dataclass(frozen=True)
class Reason:
    """Why a backend gave no right answer: once for all cases with the same words."""

    backend: str
    status: str
    reason: str
    cases: int
    example: str


def reasons(table: pd.DataFrame) -> list[Reason]:
    """The reasons of everything that is not ok, in the order of the statuses."""
    failing = table[table["status"] != "ok"]
    unordered = [
        Reason(
            clean(backend, 60),
            str(status),
            clean(reason) or "no reason given",
            len(part),
            clean(part["case"].iloc[0]),
        )
        for (backend, status, reason), part in failing.groupby(["backend", "status", "reason"], sort=False)
    ]
    return sorted(unordered, key=lambda r: (STATUSES.index(r.status), r.backend))


@dataclass(frozen=True)
class SharedReason:
    """Backends that ended alike with the same words; `cases` is None if each did so in every case."""

    status: str
    backends: tuple[str, ...]
    reason: str
    cases: int | None


def shared_reasons(table: pd.DataFrame) -> list[SharedReason]:
    """The reasons of everything that is not ok, each once with its backends, in the order of the statuses."""
    every = table.groupby("backend")["case"].nunique()
    together: dict[tuple[str, str, int | None], list[str]] = {}
    for one in reasons(table):
        cases = None if one.cases >= every.get(one.backend, 0) > 1 else one.cases
        together.setdefault((one.status, one.reason, cases), []).append(one.backend)
    return [
        SharedReason(status, tuple(names), reason, cases)
        for (status, reason, cases), names in together.items()
    ]


def heading(table: pd.DataFrame) -> str:
    """Suite, machine, device, commit, day and size in one line."""
    if table.empty:
        return "no results"
    parts = []
    for name in ("suite", "machine", "device", "commit"):
        values = [clean(value, 80) for value in table[name].dropna().unique() if value]
        parts += [f"{'commit ' if name == 'commit' else ''}{', '.join(values[:3])}"] if values else []
    started = [s for s in table["started_at"].dropna() if s]
    parts += [clean(min(started), 19)[:10]] if started else []
    cases, backends = table["case"].nunique(), table["backend"].nunique()
    return " | ".join([*parts, f"{cases} cases x {backends} backends"])
