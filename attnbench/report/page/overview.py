"""What does the first screen say? Where it was measured, a verdict line per backend, and the grid of winners."""

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
class Line:
    """One backend's verdict: counts of its cases, how often it won, and how far behind it is where it did not."""

    backend: str
    version: str
    cases: int
    right: int
    wrong: int
    failed: int
    refused: int
    unavailable: int
    clear: int
    level: int
    timed: int
    behind: str
    error: str

    @property
    def verdict(self) -> str:
        """The line as a sentence: `right on 17 of 18 cases, refused 1`."""
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
    """One cell of the grid. `backend` is who is drawn in it, empty where there is no clear winner."""

    kind: str  # clear, level, alone, untimed, none
    backend: str
    time: str
    said: str
    interval: str
    title: str
    link: Mapping[str, str]


@dataclass(frozen=True)
class Grid:
    """Winners of one shape: a row per mask and direction, a column per length; None where no case was asked."""

    shape: str
    lengths: tuple[int, ...]
    rows: tuple[tuple[str, str, tuple[Square | None, ...]], ...]


def lines(table: pd.DataFrame, won: Sequence[Winner]) -> list[Line]:
    """The backends, the most useful first: nothing wrong, most right, most often at the front, nearest to it."""
    if table.empty:
        return []
    clear, level, timed = Counter[str](), Counter[str](), Counter[str]()
    for winner in won:
        for name in winner.level:
            (clear if winner.is_clear else level)[clean(name, 60)] += 1
    for backend, times in table[table["status"] == "ok"].groupby("backend")["fwd_median_ms"]:
        timed[clean(backend, 60)] += int(times.notna().sum())
    found = []
    for one in standings(table):
        name, counts = one.backend, Counter(one.counts)
        line = Line(
            backend=name,
            version=one.version,
            cases=one.cases,
            right=counts["ok"],
            wrong=counts["wrong"],
            failed=one.failed,
            refused=counts["refused"],
            unavailable=counts["unavailable"],
            clear=clear[name],
            level=level[name],
            timed=timed[name],
            behind=factor(one.behind),
            error=three_digits(one.worst_error),
        )
        found.append((line, one.behind or float("inf")))
    found.sort(key=lambda x: (x[0].wrong > 0, -x[0].clear - x[0].level, x[0].right == 0, x[1], -x[0].right))
    return [line for line, _ in found]


def grids(won: Sequence[Winner], link: Mapping[str, Mapping[str, str]]) -> list[Grid]:
    """One per shape, the most asked first; `link` gives the selection that shows a case in Explore."""
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
    """The winner of one case in words."""
    title = clean(winner.case, 160)
    untimed = ", ".join(clean(name, 40) for name in winner.untimed[:MOST_NAMED])
    if not winner.level:
        kind, said = ("untimed", f"right, never timed: {untimed}") if untimed else ("none", "none is right")
        return Square(kind, "", "", said, "", title, link)
    fastest, time = clean(winner.level[0], 60), milliseconds(winner.fastest_ms)
    ratio = winner.ratio
    if ratio is None:
        return Square("alone", fastest, time, "the only one timed", "", title, link)
    sure = ratio.low is not None and ratio.high is not None
    interval = f"{three_digits(ratio.low)}–{three_digits(ratio.high)}" if sure else ""
    if winner.is_clear:
        said = f"{factor(ratio.point)} ahead of {clean(winner.rival, 40)}"
        return Square("clear", fastest, time, said, interval, title, link)
    names = [clean(name, 40) for name in winner.level]
    more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
    said = f"{', '.join(names[:MOST_NAMED])}{more}"
    return Square("level", "", time, said, interval if sure else "too few samples", title, link)


def answer(found: Sequence[Line], won: Sequence[Winner]) -> tuple[str, str]:
    """The page in two sentences: who, and whether the answers can be believed."""
    timed = [winner for winner in won if winner.level]
    if not timed:
        return "Nothing was timed.", _trust(found)
    best = max(found, key=lambda line: (line.clear + line.level, line.clear))
    others = len({name for winner in timed for name in winner.level[:1]}) - 1
    first = f"{best.backend} is the fastest or level with it on {best.clear + best.level} of {len(timed)} timed cases"
    return f"{first}{'; the grid says where another is.' if others else '.'}", _trust(found)


def _trust(found: Sequence[Line]) -> str:
    answered = [line for line in found if line.right or line.wrong]
    wrong = [line.backend for line in found if line.wrong]
    if wrong:
        named = ", ".join(wrong[:MOST_NAMED])
        return f"Wrong somewhere, and kept out of every speed chart: {named}{' …' if len(wrong) > MOST_NAMED else ''}."
    right = sum(line.right for line in answered)
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
    found = [
        ("Machine", _distinct(table["machine"])),
        ("Device", _distinct(table["device"]) + (f", {threads} threads" if threads else "")),
        ("Suite", _distinct(table["suite"])),
        ("Measured", _span(*ends) if ends else ""),
        ("Commit", ", ".join(commits[:3]) + (", with uncommitted changes" if dirty else "")),
        ("Versions", versions),
        ("System", ", ".join(dict.fromkeys(clean(place.get("os", ""), 80) for place in places))),
    ]
    return [(label, text) for label, text in found if text]


def _span(first: str, last: str) -> str:
    """`2026-11-21 07:15 to 07:17 UTC`."""
    if first == last:
        return f"{first} UTC"
    return f"{first} to {last[11:] if first[:10] == last[:10] else last} UTC"


def _distinct(column: pd.Series) -> str:
    return ", ".join([clean(value, 80) for value in column.dropna().unique() if value][:3])
