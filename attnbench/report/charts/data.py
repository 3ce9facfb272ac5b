"""The points of the charts: panels of curves and rows of dots, from right and measured results only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.report.cells import clean
from attnbench.report.labels import length_text, shape_text, with_families

PASS_OF_DIRECTION = {
    ("fwd", "fwd"): "forward",
    ("fwd_bwd", "fwd"): "forward of training",
    ("fwd_bwd", "bwd"): "backward",
}


@dataclass(frozen=True)
class Trace:
    """One backend in a panel: y over x, with the band between low and high if it has one."""

    backend: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One panel of a figure: a mask, a shape, a pass. `least` is the floor of memory."""

    title: str
    note: str
    traces: tuple[Trace, ...]
    least: Trace | None = None


@dataclass(frozen=True)
class DotRow:
    """One case of a dot chart: its label, a note, the value per pass and backend, and the floor of memory."""

    label: str
    note: str
    values: dict[str, dict[str, float]]
    least: float | None = None

    def drawn(self, which: str) -> list[float]:
        """Every value that is drawn of a pass in this row."""
        values = self.values.get(which) or {}
        return [*values.values(), *([self.least] if self.least and values else [])]


def right_only(table: pd.DataFrame) -> pd.DataFrame:
    """The results that a speed or memory chart may show: a wrong one is never drawn as fast."""
    return table[table["status"] == "ok"]


def _lined(table: pd.DataFrame) -> pd.Series:
    """Whether the family of each row was swept over at least two lengths."""
    key = ["family", "shape", "direction", "layout"]
    return table.groupby(key, dropna=False)["length"].transform("nunique") > 1


def curve_panels(table: pd.DataFrame, quantity: str) -> list[Panel]:
    """Panels of "median_ms", "tflops" or "peak_bytes" over the length; masks swept at one length are left out."""
    right = with_families(right_only(table))
    right = right[_lined(right)] if len(right) else right
    panels = []
    for (family, shape, direction), group in right.groupby(["family", "shape", "direction"], sort=False):
        for which in _passes(quantity, str(direction)):
            panel = _panel(group, quantity, which, clean(family, 60), str(shape), str(direction))
            if panel.traces:
                panels.append(panel)
    return panels


def _passes(quantity: str, direction: str) -> tuple[str, ...]:
    if quantity == "peak_bytes":
        return ("",)
    return ("fwd", "bwd") if direction == "fwd_bwd" else ("fwd",)


def _panel(group: pd.DataFrame, quantity: str, which: str, family: str, shape: str, direction: str) -> Panel:
    column = f"{which}_{quantity}" if which else quantity
    traces = []
    for backend, part in group.groupby("backend"):
        points = part[part[column].notna()].sort_values("length").drop_duplicates("length")
        if points.empty:
            continue
        low, high = _band(points, quantity, which)
        traces.append(
            Trace(clean(backend, 60), _floats(points["length"]), _floats(points[column]), low, high)
        )
    least = None
    if quantity == "peak_bytes":
        floor = group[group["least_peak_bytes"].notna()].sort_values("length").drop_duplicates("length")
        least = (
            Trace("minimum", _floats(floor["length"]), _floats(floor["least_peak_bytes"]))
            if len(floor)
            else None
        )
    pass_text = (
        PASS_OF_DIRECTION[direction, which]
        if which
        else {"fwd": "forward", "fwd_bwd": "forward + backward"}[direction]
    )
    return Panel(family, f"{pass_text}, {shape}", tuple(traces), least)


def _band(points: pd.DataFrame, quantity: str, which: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if quantity == "peak_bytes":
        return (), ()
    low, high = points[f"{which}_low_ms"], points[f"{which}_high_ms"]
    if quantity == "median_ms":
        return _floats(low), _floats(high)
    flops = points[f"{which}_flops"].astype(float)
    return _floats(flops / high / 1e9), _floats(flops / low / 1e9)


def dot_rows(table: pd.DataFrame, quantity: str, passes: Sequence[str]) -> list[DotRow]:
    """The rows for masks swept at one length; `passes` are "fwd" and "bwd", or "" for memory."""
    right = with_families(right_only(table))
    right = right[~_lined(right)] if len(right) else right
    rows = []
    for _, group in right.groupby("case", sort=False):
        values = {which: _by_backend(group, f"{which}_{quantity}" if which else quantity) for which in passes}
        if not any(values.values()):
            continue
        first = next(group.itertuples())
        floor = group["least_peak_bytes"].dropna()
        least = float(floor.iloc[0]) if quantity == "peak_bytes" and len(floor) else None
        name = (
            f"{clean(first.group, 30)}: {clean(first.family, 40)}" if first.group else clean(first.family, 48)
        )
        use = "training" if first.direction == "fwd_bwd" else "inference"
        rows.append(DotRow(f"{name}, {length_text(first)}", f"{shape_text(first)}, {use}", values, least))
    return rows


def _by_backend(group: pd.DataFrame, column: str) -> dict[str, float]:
    pairs = zip(group["backend"], group[column], strict=True)
    return {clean(backend, 60): float(value) for backend, value in pairs if pd.notna(value)}


def _floats(values: Sequence[Any] | pd.Series) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
