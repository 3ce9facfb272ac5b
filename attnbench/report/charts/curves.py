"""The charts of time, TFLOP/s and memory: over the length, or by case if one length was swept."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pandas as pd

from attnbench.report.cells import clean
from attnbench.report.charts.data import Panel, Trace, curve_panels, dot_rows
from attnbench.report.charts.dots import draw_dots
from attnbench.report.charts.palette import (
    HEAD_INCHES,
    INK,
    QUANTITIES,
    QUIET,
    STYLE,
    Look,
    headline,
    ink,
    length_tick,
    looks,
    spread_apart,
    value_axis,
)
from attnbench.report.labels import PASS_TEXT
from attnbench.report.tables import heading

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS_PER_ROW, MOST_PER_ROW, MOST_PANELS, MOST_ROWS = 3, 4, 12, 26
PANEL_INCHES = (4.7, 3.1)
LEAST_INCHES = 6.4  # of a figure's width: its title must fit
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "alpha": 0.6, "shrinkA": 0, "shrinkB": 3, "relpos": (0, 0.5)}


def speed_and_memory(table: pd.DataFrame) -> Iterator[tuple[str, Figure]]:
    """Figures by file name without its ending: over the length, and `-cases` for what was swept at one length."""
    drawn = looks(clean(name, 60) for name in table.loc[table["status"] == "ok", "backend"])
    subtitle = heading(table)
    for quantity, (name, title, _, _) in QUANTITIES.items():
        panels = curve_panels(table, quantity)
        for page, start in enumerate(range(0, len(panels), MOST_PANELS)):
            some = panels[start : start + MOST_PANELS]
            yield (
                _page(name, page),
                draw_curves(some, quantity, drawn, f"{title} by sequence length", subtitle),
            )
        passes = {"": "forward, and backward in training"} if quantity == "peak_bytes" else PASS_TEXT
        rows = dot_rows(table, quantity, tuple(passes))
        for page, start in enumerate(range(0, len(rows), MOST_ROWS)):
            shown = rows[start : start + MOST_ROWS]
            yield (
                _page(f"{name}-cases", page),
                draw_dots(shown, passes, quantity, drawn, f"{title} by case", subtitle),
            )


def _page(name: str, page: int) -> str:
    return name if page == 0 else f"{name}-{page + 1}"


def draw_curves(
    panels: Sequence[Panel], quantity: str, drawn: dict[str, Look], title: str, subtitle: str
) -> Figure:
    """Small multiples over the length: log axes, bands of the spread, each curve labelled at its end."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    panels, columns = in_rows(panels)
    rows = -(-len(panels) // columns)
    size = (max(PANEL_INCHES[0] * columns + 0.3, LEAST_INCHES), PANEL_INCHES[1] * rows + HEAD_INCHES)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - HEAD_INCHES / size[1]), hspace=0.06, wspace=0.04)  # type: ignore[union-attr, call-arg]
        grid = figure.subplots(rows, columns, squeeze=False)
        # One scale for all, so that panels can be compared.
        values = [v for panel in panels for trace in _all(panel) for v in trace.y]
        for place, axes in enumerate(grid.flat):
            if place >= len(panels):
                axes.set_visible(False)
                continue
            _curve_panel(axes, panels[place], quantity, drawn, values)
            if place + columns < len(panels):
                axes.set_xlabel("")
        headline(
            figure,
            title,
            f"{subtitle} | band: 10 % to 90 % of the samples" if quantity != "peak_bytes" else subtitle,
        )
    return figure


def in_rows(panels: Sequence[Panel]) -> tuple[list[Panel], int]:
    """The panels, those of one pass and shape in a row if all rows are then full; and the number of columns."""
    notes = list(dict.fromkeys(panel.note for panel in panels))
    counts = {sum(panel.note == note for panel in panels) for note in notes}
    if len(counts) == 1 and 1 < min(counts) <= MOST_PER_ROW:
        return sorted(panels, key=lambda panel: notes.index(panel.note)), min(counts)
    return list(panels), min(PANELS_PER_ROW, len(panels))


def _all(panel: Panel) -> tuple[Trace, ...]:
    return (*panel.traces, panel.least) if panel.least else panel.traces


def _curve_panel(
    axes: Axes, panel: Panel, quantity: str, drawn: dict[str, Look], values: Sequence[float]
) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    value_axis(axes, values, QUANTITIES[quantity][2], powers_of_two=quantity == "peak_bytes")
    lengths = sorted({x for trace in _all(panel) for x in trace.x})
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(lengths))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(length_tick))
    axes.set_xlim(lengths[0] / 1.12, lengths[-1] * 1.12)
    axes.set_xlabel("sequence length (tokens)")
    for place, trace in enumerate(panel.traces):
        look = drawn[trace.backend]
        # Thinner and thinner, so that curves that coincide stay visible.
        thinner = 0.6 * place / max(1, len(panel.traces) - 1)
        if trace.low:
            axes.fill_between(trace.x, trace.low, trace.high, color=look.colour, alpha=0.16, linewidth=0)
        axes.plot(
            trace.x,
            trace.y,
            color=look.colour,
            linestyle=look.dash,
            marker=look.marker,
            markersize=6.2 * (1 - thinner / 2),
            markeredgecolor="white",
            markeredgewidth=0.6,
            linewidth=2.6 * (1 - thinner),
            label=trace.backend,
        )
    if panel.least is not None:
        axes.plot(
            panel.least.x, panel.least.y, color=INK, linestyle=(0, (1, 1.4)), linewidth=1.6, label="minimum"
        )
    axes.set_title(panel.title, fontweight="bold", pad=19)
    axes.text(0, 1.025, panel.note, transform=axes.transAxes, fontsize=8, color=QUIET, va="bottom")
    _label_ends(axes, _all(panel), drawn)


def _label_ends(axes: Axes, traces: Sequence[Trace], drawn: dict[str, Look]) -> None:
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [tuple(to_axes.transform((trace.x[-1], trace.y[-1]))) for trace in traces]
    gap = 10.5 / (72 * (PANEL_INCHES[1] - 1.0))
    for trace, (x, y), height in zip(traces, ends, spread_apart([y for _, y in ends], gap), strict=True):
        colour = ink(drawn[trace.backend].colour) if trace.backend in drawn else INK
        axes.annotate(
            trace.backend,
            xy=(x, y),
            xycoords="axes fraction",
            xytext=(1.05, height),
            textcoords="axes fraction",
            fontsize=8,
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops=LEADER | {"color": colour},
        )
