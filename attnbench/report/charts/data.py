"""Which points does a chart show? Panels of curves and of dots, from the frame; only right, measured results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from attnbench.report.cells import clean
from attnbench.report.labels import length_text, shape_text, with_families

PASS_TEXT = {
    ("fwd", "fwd"): "forward",
    ("fwd_bwd", "fwd"): "forward of training",
    ("fwd_bwd", "bwd"): "backward",
}


@dataclass(frozen=True)
class Curve:
    """One backend in a panel: y over x, with the band between low and high where there is one."""

    backend: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True)
class Panel:
    """One picture of a figure: a mask, a shape, a pass. `least` is the floor (x, y) where there is one."""

    title: str
    note: str
    curves: tuple[Curve, ...]
    least: Curve | None = None


@dataclass(frozen=True)
class Row:
    """One case of a dot chart: its label, a note, and per pass the value by backend; the floor where there is one."""

    label: str
    note: str
    values: dict[str, dict[str, float]]
    least: float | None = None

    def seen(self, which: str) -> list[float]:
        """Every figure that is drawn in this row of a pass."""
        values = self.values.get(which) or {}
        return [*values.values(), *([self.least] if self.least and values else [])]


def right_only(table: pd.DataFrame) -> pd.DataFrame:
    """What a speed or memory chart may show: a wrong result is never drawn as fast."""
    return table[table["status"] == "ok"]


def _lined(table: pd.DataFrame) -> pd.Series:
    """Whether a row's family was swept over at least two lengths."""
    key = ["family", "shape", "direction", "layout"]
    return table.groupby(key, dropna=False)["length"].transform("nunique") > 1


def curve_panels(table: pd.DataFrame, quantity: str) -> list[Panel]:
    """Panels of "median_ms", "tflops" or "peak_bytes" over the length; masks swept at one length are left out."""
    known = with_families(right_only(table))
    known = known[_lined(known)] if len(known) else known
    panels = []
    for (family, shape, direction), group in known.groupby(["family", "shape", "direction"], sort=False):
        for which in _passes(quantity, str(direction)):
            panel = _panel(group, quantity, which, clean(family, 60), str(shape), str(direction))
            if panel.curves:
                panels.append(panel)
    return panels


def _passes(quantity: str, direction: str) -> tuple[str, ...]:
    if quantity == "peak_bytes":
        return ("",)
    return ("fwd", "bwd") if direction == "fwd_bwd" else ("fwd",)


def _panel(group: pd.DataFrame, quantity: str, which: str, family: str, shape: str, direction: str) -> Panel:
    column = f"{which}_{quantity}" if which else quantity
    curves = []
    for backend, part in group.groupby("backend"):
        points = part[part[column].notna()].sort_values("length").drop_duplicates("length")
        if points.empty:
            continue
        low, high = _band(points, quantity, which)
        curves.append(
            Curve(clean(backend, 60), _floats(points["length"]), _floats(points[column]), low, high)
        )
    least = None
    if quantity == "peak_bytes":
        floor = group[group["least_peak_bytes"].notna()].sort_values("length").drop_duplicates("length")
        least = (
            Curve("minimum", _floats(floor["length"]), _floats(floor["least_peak_bytes"]))
            if len(floor)
            else None
        )
    said = (
        PASS_TEXT[direction, which]
        if which
        else {"fwd": "forward", "fwd_bwd": "forward + backward"}[direction]
    )
    return Panel(family, f"{said}, {shape}", tuple(curves), least)


def _band(points: pd.DataFrame, quantity: str, which: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if quantity == "peak_bytes":
        return (), ()
    low, high = points[f"{which}_low_ms"], points[f"{which}_high_ms"]
    if quantity == "median_ms":
        return _floats(low), _floats(high)
    flops = points[f"{which}_flops"].astype(float)
    return _floats(flops / high / 1e9), _floats(flops / low / 1e9)


def dot_rows(table: pd.DataFrame, quantity: str, passes: Sequence[str]) -> list[Row]:
    """Rows of a dot chart for the masks swept over one length only; `passes` "fwd" and "bwd", or "" for memory."""
    known = with_families(right_only(table))
    known = known[~_lined(known)] if len(known) else known
    rows = []
    for _, group in known.groupby("case", sort=False):
        values = {which: _by_backend(group, f"{which}_{quantity}" if which else quantity) for which in passes}
        if not any(values.values()):
            continue
        first = next(group.itertuples())
        floor = group["least_peak_bytes"].dropna()
        least = float(floor.iloc[0]) if quantity == "peak_bytes" and len(floor) else None
        name = (
            f"{clean(first.group, 30)}: {clean(first.family, 40)}" if first.group else clean(first.family, 48)
        )
        said = "training" if first.direction == "fwd_bwd" else "inference"
        rows.append(Row(f"{name}, {length_text(first)}", f"{shape_text(first)}, {said}", values, least))
    return rows


def _by_backend(group: pd.DataFrame, column: str) -> dict[str, float]:
    pairs = zip(group["backend"], group[column], strict=True)
    return {clean(backend, 60): float(value) for backend, value in pairs if pd.notna(value)}


def _floats(values: Sequence[Any] | pd.Series) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
