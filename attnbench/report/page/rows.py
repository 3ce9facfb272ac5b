"""The data in the page: cases, rows and words once each, so that 50,000 rows stay small."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from attnbench.report.cells import clean, is_missing
from attnbench.report.columns import Column, titled
from attnbench.report.labels import dims_text, heads_text, unlike_lengths_text

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
MOST_SAMPLES = 200_000  # in a page; beyond, samples are only their quantiles
LONGEST_NAME, LONGEST_SELECTION, LONGEST_REASON = 60, 80, 300


class Words:
    """Every text once: `words.place(text)` is its index in `words.texts`."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._places: dict[str, int] = {}

    def place(self, text: Any, longest: int = LONGEST_REASON) -> int:
        """The index of a foreign text, cut and made inert."""
        inert = clean(text, longest)
        if inert not in self._places:
            self._places[inert] = len(self.texts)
            self.texts.append(inert)
        return self._places[inert]


def rest_text(row: Any) -> str:
    """What else is fixed along a line, beside heads, dims and dtype: batch, scores, layout, unequal lengths."""
    layout = row.layout if row.layout != "bhsd" else ""
    parts = (f"batch {row.batch}", clean(row.scores, LONGEST_SELECTION), layout, unlike_lengths_text(row))
    return ", ".join(part for part in parts if part)


def selection(row: Any) -> dict[str, str]:
    """The selection in Explore that shows a row's case: texts by field, as the page's data has them."""
    texts = {
        "mask": row.family,
        "heads": heads_text(row),
        "dims": dims_text(row),
        "dtype": row.dtype,
        "rest": rest_text(row),
        "direction": row.direction,
    }
    return {field: clean(text, LONGEST_SELECTION) for field, text in texts.items()}


def page_rows(tables: Sequence[pd.DataFrame]) -> dict[str, Any]:
    """The rows of every set (frames as `with_families` gives them) as JSON values.

    `cases` and `rows` are lists of lists in the order of `case_fields` and `row_fields`; texts are indices into
    `words`. Per pass: ms at QUANTILES, the number of samples, and the samples if all sets together have few enough.
    `columns` are the title, field and unit of what `more_columns` adds to the table of figures.
    """
    words = Words()
    kept = sum(int(t[f"{p}_samples"].sum()) for t in tables for p in ("fwd", "bwd")) <= MOST_SAMPLES
    more = more_columns()
    cases: list[list[Any]] = []
    rows: list[list[Any]] = []
    for number, table in enumerate(tables):
        places: dict[str, int] = {}
        for row in table[[*DRAWN_COLUMNS, *(column.name for column in more)]].itertuples():
            if row.case not in places:
                places[str(row.case)] = len(cases)
                cases.append([number, *_case(row, words)])
            figures = (_value(row, column) for column in more)
            rows.append([places[str(row.case)], *_row(row, words, kept), *figures])
    return {
        "case_fields": CASE_FIELDS,
        "row_fields": (*ROW_FIELDS, *(column.name for column in more)),
        "columns": [[column.title, column.name, column.unit] for column in more],
        "words": words.texts,
        "cases": cases,
        "rows": rows,
    }


CASE_FIELDS = (
    ("set", "id", "mask", "heads", "dims", "dtype", "rest", "direction", "length")
    + ("fwd_flops", "bwd_flops", "fwd_bytes", "bwd_bytes", "least_peak", "pairs")
)  # fmt: skip
ROW_FIELDS = (
    ("case", "backend", "status", "reason", "kernel", "fwd", "bwd", "fwd_roof", "bwd_roof", "roof")
    + ("peak", "error", "notes")
)  # fmt: skip

DRAWN_COLUMNS = (
    ("case", "family", "q_heads", "kv_heads", "head_dim", "v_dim", "dtype", "batch", "scores", "layout")
    + ("q_len", "k_len", "direction", "length", "fwd_flops", "bwd_flops", "fwd_least_bytes")
    + ("bwd_least_bytes", "least_peak_bytes", "pairs", "backend", "status", "reason", "kernel")
    + ("fwd_samples_ms", "bwd_samples_ms", "fwd_roof_share", "bwd_roof_share", "roof_share", "peak_bytes")
    + ("peak_over_least", "error_over_budget", "notes")
)  # fmt: skip


def more_columns() -> list[Column]:
    """The columns that every table shows, without those that the page's charts are drawn from."""
    return [column for column in titled() if column.name not in DRAWN_COLUMNS]


def _value(row: Any, column: Column) -> float | int | None:
    value = getattr(row, column.name)
    return _whole(value) if column.kind == "whole" else _short(value)


def _case(row: Any, words: Words) -> list[Any]:
    numbers = (row.fwd_flops, row.bwd_flops, row.fwd_least_bytes, row.bwd_least_bytes)
    counts = [_whole(n) for n in (*numbers, row.least_peak_bytes, row.pairs)]
    named = [words.place(row.case), *map(words.place, selection(row).values())]
    return [*named, _whole(row.length), *counts]


def _row(row: Any, words: Words, kept: bool) -> list[Any]:
    return [
        words.place(row.backend, LONGEST_NAME),
        words.place(row.status),
        words.place(row.reason),
        words.place(row.kernel, 120),
        _samples(row.fwd_samples_ms, kept),
        _samples(row.bwd_samples_ms, kept),
        *(_short(value) for value in (row.fwd_roof_share, row.bwd_roof_share, row.roof_share)),
        _whole(row.peak_bytes) if row.status == "ok" else None,
        _short(row.error_over_budget),
        words.place("; ".join(map(str, row.notes[:5]))),
    ]


def _samples(rounds: Iterable[Sequence[float]], kept: bool) -> list[Any] | None:
    whole = [list(one) for one in rounds]
    samples = sorted(ms for one in whole for ms in one)
    if not samples:
        return None
    quantiles = [_short(_quantile(samples, share)) for share in QUANTILES]
    return [quantiles, len(samples), *([[[_short(ms) for ms in one] for one in whole]] if kept else [])]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """numpy's quantile with linear interpolation; twenty times as fast on few samples."""
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])


def _short(value: Any) -> float | None:
    """Four digits: more than a reader can use, in a third of the bytes."""
    if value is None or is_missing(value) or not math.isfinite(value):
        return None
    return float(f"{float(value):.4g}")


def _whole(value: Any) -> int | None:
    return None if value is None or is_missing(value) else int(value)


def roofs_of(table: pd.DataFrame, environments: Mapping[str, Any]) -> dict[str, Any]:
    """The roofs of the environment of most rows; empty if none were measured."""
    for key in table["environment"].dropna().value_counts().index:
        roofs = (environments.get(key) or {}).get("roofs") or {}
        if roofs:
            names = ("matmul_flops_per_s", "copy_bytes_per_s", "exps_per_s")
            return {name: roofs[name] for name in names if roofs.get(name)}
    return {}
