"""The first screen: where it was measured, a verdict per backend, and the grid of winners."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.report.cells import clean, factor, milliseconds, three_digits
from attnbench.report.labels import direction_text
from attnbench.report.ranking import Winner
from attnbench.report.tables import standings

MOST_NAMED = 4


@dataclass(frozen=True)
class BackendVerdict:
    """One backend over all cases: counts by outcome, how often it won, how far behind it is on average."""

    backend: str
    version: str
    cases: int
    right: int
    wrong: int
    failed: int
    refused: int
    unavailable: int
    clear: int
    tied: int
    timed: int
    behind: str
    error: str

    @property
    def sentence(self) -> str:
        """`right on 17 of 18 cases, refused 1`."""
        if self.unavailable == self.cases:
            return "not available on this machine"
        if self.refused == self.cases:
            return f"refused all {self.cases} cases"
        parts = [f"right on {self.right} of {self.cases} cases"]
        parts += [f"{word} {n}" for word, n in (("wrong on", self.wrong), ("failed on", self.failed)) if n]
        return ", ".join(parts + ([f"refused {self.refused}"] if self.refused else []))

    @property
    def kind(self) -> str:
        """Its class on the page."""
        return "wrong" if self.wrong else "failed" if self.failed else "right" if self.right else "absent"


@dataclass(frozen=True)
class Square:
    """One cell of the grid. `backend` is drawn in it; empty without a clear winner."""

    kind: str  # clear, tied, alone, untimed, none
    backend: str
    time: str
    detail: str
    interval: str
    title: str
    link: Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """Winners of one shape: a row per mask and direction, a column per length; None if that case was not run."""

    shape: str
    lengths: tuple[int, ...]
    rows: tuple[tuple[str, str, tuple[Square | None, ...]], ...]


def verdicts(table: pd.DataFrame, won: Sequence[Winner]) -> list[BackendVerdict]:
    """The backends, the most useful first: nothing wrong, most often at the front, nearest to it, most right."""
    if table.empty:
        return []
    clear, tied, timed = Counter[str](), Counter[str](), Counter[str]()
    for winner in won:
        for name in winner.tied:
            (clear if winner.is_clear else tied)[clean(name, 60)] += 1
    for backend, times in table[table["status"] == "ok"].groupby("backend")["fwd_median_ms"]:
        timed[clean(backend, 60)] += int(times.notna().sum())
    ranked = []
    for one in standings(table):
        name, counts = one.backend, Counter(one.counts)
        verdict = BackendVerdict(
            backend=name,
            version=one.version,
            cases=one.cases,
            right=counts["ok"],
            wrong=counts["wrong"],
            failed=one.failed,
            refused=counts["refused"],
            unavailable=counts["unavailable"],
            clear=clear[name],
            tied=tied[name],
            timed=timed[name],
            behind=factor(one.behind),
            error=three_digits(one.worst_error),
        )
        ranked.append((verdict, one.behind or float("inf")))
    ranked.sort(key=lambda x: (x[0].wrong > 0, -x[0].clear - x[0].tied, x[0].right == 0, x[1], -x[0].right))
    return [verdict for verdict, _ in ranked]


def grids(won: Sequence[Winner], link: Mapping[str, Mapping[str, str]]) -> list[Grid]:
    """One per shape, the one with most cases first; `link` gives the selection that shows a case in Explore."""
    shapes: dict[str, list[Winner]] = {}
    for winner in won:
        shapes.setdefault(winner.shape, []).append(winner)
    return [
        _grid(shape, group, link) for shape, group in sorted(shapes.items(), key=lambda item: -len(item[1]))
    ]


def _grid(shape: str, won: Sequence[Winner], link: Mapping[str, Mapping[str, str]]) -> Grid:
    lengths = tuple(sorted({w.length for w in won}))
    rows: dict[tuple[str, str], dict[int, Square]] = {}
    for winner in won:
        key = (clean(winner.family, 60), winner.direction)
        rows.setdefault(key, {})[winner.length] = square(winner, link.get(winner.case, {}))
    return Grid(
        clean(shape, 100),
        lengths,
        tuple(
            (mask, direction_text(d), tuple(cells.get(n) for n in lengths))
            for (mask, d), cells in rows.items()
        ),
    )


def square(winner: Winner, link: Mapping[str, str]) -> Square:
    """The winner of one case as the grid shows it."""
    title = clean(winner.case, 160)
    untimed = ", ".join(clean(name, 40) for name in winner.untimed[:MOST_NAMED])
    if not winner.tied:
        kind, detail = ("untimed", f"right, never timed: {untimed}") if untimed else ("none", "none is right")
        return Square(kind, "", "", detail, "", title, link)
    fastest, time = clean(winner.tied[0], 60), milliseconds(winner.fastest_ms)
    ratio = winner.ratio
    if ratio is None:
        return Square("alone", fastest, time, "the only one timed", "", title, link)
    has_interval = ratio.low is not None and ratio.high is not None
    interval = f"{three_digits(ratio.low)}–{three_digits(ratio.high)}" if has_interval else ""
    if winner.is_clear:
        detail = f"{factor(ratio.point)} ahead of {clean(winner.rival, 40)}"
        return Square("clear", fastest, time, detail, interval, title, link)
    names = [clean(name, 40) for name in winner.tied]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    detail = f"{', '.join(names[:MOST_NAMED])}{more}"
    return Square("tied", "", time, detail, interval if has_interval else "too few samples", title, link)


def answer(backends: Sequence[BackendVerdict], won: Sequence[Winner]) -> tuple[str, str]:
    """The page in two sentences: which backend is fastest, and whether the answers are right."""
    timed = [winner for winner in won if winner.tied]
    if not timed:
        return "Nothing was timed.", _trust(backends)
    best = max(backends, key=lambda one: (one.clear + one.tied, one.clear))
    others = len({name for winner in timed for name in winner.tied[:1]}) - 1
    first = f"{best.backend} is the fastest or tied with it on {best.clear + best.tied} of {len(timed)} timed cases"
    return f"{first}{'; the grid shows where another is.' if others else '.'}", _trust(backends)


def _trust(backends: Sequence[BackendVerdict]) -> str:
    answered = [one for one in backends if one.right or one.wrong]
    wrong = [one.backend for one in backends if one.wrong]
    if wrong:
        names = f"{', '.join(wrong[:MOST_NAMED])}{' …' if len(wrong) > MOST_NAMED else ''}"
        return f"Wrong on some cases, and those are in no speed chart: {names}."
    right = sum(one.right for one in answered)
    return f"Nothing was wrong: {right} answers of {len(answered)} backends agree with exact attention."


def facts(table: pd.DataFrame, environments: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Machine, device, date, versions, commit: label and text."""
    keys = [key for key in table["environment"].dropna().unique() if key in environments]
    places = [environments[key] for key in keys if isinstance(environments[key], dict)]
    started = sorted(s for s in table["started_at"].dropna() if s)
    ends = [clean(s, 40)[:16].replace("T", " ") for s in (started[:1] + started[-1:])]
    commits = [clean(c, 40)[:12] for c in table["commit"].dropna().unique() if c]
    dirty = any((place.get("git") or {}).get("dirty") for place in places)
    libraries: dict[str, list[str]] = {}
    for place in places:
        for name, version in (place.get("libraries") or {}).items():
            if version:
                libraries.setdefault(clean(name, 40), []).append(clean(version, 40))
    for place in places:
        if place.get("python"):
            libraries.setdefault("python", []).append(clean(place["python"], 40))
    versions = ", ".join(f"{name} {' and '.join(dict.fromkeys(v))}" for name, v in libraries.items())
    threads = ", ".join(
        dict.fromkeys(clean(place["threads"], 20) for place in places if place.get("threads"))
    )
    labelled = [
        ("Machine", _distinct(table["machine"])),
        ("Device", _distinct(table["device"]) + (f", {threads} threads" if threads else "")),
        ("Suite", _distinct(table["suite"])),
        ("Measured", _span(*ends) if ends else ""),
        ("Commit", ", ".join(commits[:3]) + (", with uncommitted changes" if dirty else "")),
        ("Versions", versions),
        ("System", ", ".join(dict.fromkeys(clean(place.get("os", ""), 80) for place in places))),
    ]
    return [(label, text) for label, text in labelled if text]


def _span(first: str, last: str) -> str:
    """`2026-11-21 07:15 to 07:17 UTC`."""
    if first == last:
        return f"{first} UTC"
    return f"{first} to {last[11:] if first[:10] == last[:10] else last} UTC"


def _distinct(column: pd.Series) -> str:
    return ", ".join([clean(value, 80) for value in column.dropna().unique() if value][:3])
