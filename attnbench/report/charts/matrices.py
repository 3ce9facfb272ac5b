"""The matrices of backends by masks: the largest error over budget, and which cases are answered."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from attnbench.report.cells import clean, is_missing, three_digits
from attnbench.report.charts.palette import HEAD_INCHES, INK, QUIET, STYLE, contrast, headline
from attnbench.report.labels import with_families
from attnbench.report.tables import heading
from attnbench.statuses import STATUS, STATUSES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_MASKS = 24  # of one figure
CELL_INCHES = (0.92, 0.4)


@dataclass(frozen=True)
class Matrix:
    """Backends by masks: the statuses of each cell, and its largest error over budget (NaN if unjudged)."""

    backends: tuple[str, ...]
    masks: tuple[str, ...]
    counts: dict[tuple[str, str], Counter[str]]
    worst: dict[tuple[str, str], float]


def matrix(table: pd.DataFrame) -> Matrix:
    """The outcome of every backend on every mask."""
    cases = with_families(table)
    cases = cases.assign(
        family=cases["family"].map(lambda text: clean(text, 48)),
        backend=cases["backend"].map(lambda b: clean(b, 40)),
    )
    counts: dict[tuple[str, str], Counter[str]] = {}
    worst: dict[tuple[str, str], float] = {}
    for (backend, family), group in cases.groupby(["backend", "family"], sort=False):
        counts[str(backend), str(family)] = Counter(group["status"])
        largest = group["error_over_budget"].max()
        worst[str(backend), str(family)] = float("nan") if is_missing(largest) else float(largest)
    masks = tuple(dict.fromkeys(cases["family"]))
    tally = {name: Counter(group["status"]) for name, group in cases.groupby("backend")}
    order = sorted(tally, key=lambda name: (-tally[name]["ok"], tally[name]["unavailable"], str(name)))
    return Matrix(tuple(map(str, order)), masks, counts, worst)


def matrices(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """The figures `error` and `support`; several of each for more than MOST_MASKS masks."""
    whole = matrix(table)
    subtitle = heading(table)
    for page, start in enumerate(range(0, len(whole.masks), MOST_MASKS)):
        part = Matrix(whole.backends, whole.masks[start : start + MOST_MASKS], whole.counts, whole.worst)
        suffix = "" if page == 0 else f"-{page + 1}"
        if any(np.isfinite(part.worst.get((b, m), np.nan)) for b in part.backends for m in part.masks):
            yield f"error{suffix}", draw_error(part, subtitle)
        yield f"support{suffix}", draw_support(part, subtitle)


def _canvas(shown: Matrix, title: str, subtitle: str, extra_inches: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    label_width = 0.35 + 0.085 * max(len(name) for name in shown.backends)
    label_height = 0.25 + 0.036 * max(len(name) for name in shown.masks)
    cell = min(max(CELL_INCHES[0], (8.2 - label_width) / len(shown.masks)), 2 * CELL_INCHES[0])
    width = max(label_width + cell * len(shown.masks) + 0.9, 7.0)
    height = HEAD_INCHES + label_height + CELL_INCHES[1] * len(shown.backends) + extra_inches
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes(
        (
            label_width / width,
            extra_inches / height,
            cell * len(shown.masks) / width,
            CELL_INCHES[1] * len(shown.backends) / height,
        )
    )
    axes.set_xlim(0, len(shown.masks))
    axes.set_ylim(len(shown.backends), 0)
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xticks(
        np.arange(len(shown.masks)) + 0.5,
        shown.masks,
        rotation=32,
        ha="left",
        rotation_mode="anchor",
        color=INK,
    )
    axes.set_yticks(np.arange(len(shown.backends)) + 0.5, shown.backends, color=INK, fontsize=9)
    headline(figure, title, subtitle)
    return figure, axes


def draw_error(shown: Matrix, subtitle: str) -> Figure:
    """The largest error over its budget: up to 1 is right (blue), above 1 is wrong (red, with a cross)."""
    import matplotlib as mpl
    from matplotlib.colors import LinearSegmentedColormap, LogNorm
    from matplotlib.patches import Rectangle

    right = LinearSegmentedColormap.from_list("right", ["#F3F7FA", "#B8D4E8", "#6FA8CF"])
    wrong = LinearSegmentedColormap.from_list("wrong", ["#F0A58A", "#B2182B", "#67001F"])
    below, above = LogNorm(0.01, 1, clip=True), LogNorm(1, 1e4, clip=True)
    unjudged = [
        b for b in shown.backends if all(np.isnan(shown.worst.get((b, m), np.nan)) for m in shown.masks)
    ]
    shown = replace(shown, backends=tuple(b for b in shown.backends if b not in unjudged))
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(shown, "Largest error over its budget", f"up to 1 is right | {subtitle}", 0.5)
        for y, backend in enumerate(shown.backends):
            for x, mask in enumerate(shown.masks):
                value = shown.worst.get((backend, mask), float("nan"))
                box = {"xy": (x + 0.02, y + 0.04), "width": 0.96, "height": 0.92}
                if np.isnan(value):
                    axes.add_patch(Rectangle(**box, facecolor="#F4F5F6", edgecolor="none"))  # type: ignore[arg-type]
                    text, colour = why_unjudged(shown.counts.get((backend, mask), Counter())), "#A3AAB2"
                    axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=6.5, color=colour)
                    continue
                is_wrong = value > 1
                face = wrong(above(value)) if is_wrong else right(below(value))
                axes.add_patch(Rectangle(**box, facecolor=face, edgecolor="none"))  # type: ignore[arg-type]
                text = f"✗ {error_text(value)}" if is_wrong else error_text(value)
                ink = "white" if is_wrong and value > 5 else INK
                weight = "bold" if is_wrong else "normal"
                axes.text(
                    x + 0.5, y + 0.5, text, ha="center", va="center", fontsize=8, color=ink, fontweight=weight
                )
        if unjudged:
            lines = textwrap.wrap(
                f"never judged: {', '.join(unjudged)}", width=int(figure.get_size_inches()[0] * 15)
            )
            width, height = figure.get_size_inches()
            figure.text(
                0.15 / width, 0.14 / height, "\n".join(lines[:2]), fontsize=8, color=QUIET, va="bottom"
            )
    return figure


def error_text(value: float) -> str:
    """`0.37`, `12.5`, `> 1e9`."""
    return (
        "> 1e9"
        if value > 1e9
        else f"{value:.2g}"
        if value < 0.1 or value >= 1000
        else three_digits(value)[:4].rstrip(".")
    )


def why_unjudged(counts: Counter[str]) -> str:
    """The first status, in their order, of the cases of a cell without an error."""
    return min(counts, key=STATUSES.index) if counts else "not run"


def draw_support(shown: Matrix, subtitle: str) -> Figure:
    """The statuses of each backend's cases per mask: a cell is divided in proportion."""
    import matplotlib as mpl
    from matplotlib.patches import Patch, Rectangle

    used = [status for status in STATUSES if any(counts[status] for counts in shown.counts.values())]
    with mpl.rc_context(STYLE):
        figure, axes = _canvas(
            shown, "Answers by mask", f"share of the cases of each mask | {subtitle}", 0.62
        )
        for y, backend in enumerate(shown.backends):
            for x, mask in enumerate(shown.masks):
                counts = shown.counts.get((backend, mask), Counter())
                total, left = sum(counts.values()), x + 0.02
                for status in used:
                    if not counts[status]:
                        continue
                    share = 0.96 * counts[status] / total
                    patch = Rectangle(
                        (left, y + 0.04), share, 0.92, facecolor=STATUS[status].colour, edgecolor="none"
                    )
                    axes.add_patch(patch)
                    if share > 0.2:
                        number = "" if status == "unavailable" else f" {counts[status]}"
                        ink = "white" if contrast("#FFFFFF", STATUS[status].colour) >= 3 else INK
                        label = f"{STATUS[status].glyph}{number}"
                        axes.text(
                            left + share / 2,
                            y + 0.5,
                            label,
                            ha="center",
                            va="center",
                            fontsize=7.5,
                            color=ink,
                        )
                    left += share
        height = figure.get_size_inches()[1]
        marks = [Patch(facecolor=STATUS[s].colour, label=f"{STATUS[s].glyph} {s}") for s in used]
        anchor = (0.15 / figure.get_size_inches()[0], 0.12 / height)
        legend = figure.legend(
            handles=marks, loc="lower left", bbox_to_anchor=anchor, ncols=8, frameon=False, fontsize=8
        )
        for text in legend.get_texts():
            text.set_color(QUIET)
    return figure
