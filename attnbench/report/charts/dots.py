"""The dot chart of a sweep at one length: one row per case, one dot per backend, the best of a row named."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from attnbench.report.charts.data import DotRow
from attnbench.report.charts.palette import (
    HEAD_INCHES,
    INK,
    QUANTITIES,
    QUIET,
    STYLE,
    Look,
    headline,
    ink,
    value_axis,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LEGEND_COLUMNS = 8
MARK_INCHES, LETTER_INCHES = 0.4, 0.075  # of a legend's entry


def draw_dots(
    rows: Sequence[DotRow],
    passes: dict[str, str],
    quantity: str,
    looks: dict[str, Look],
    title: str,
    subtitle: str,
) -> Figure:
    """One row per case, one dot per backend, one panel per pass; the best of a row is larger and has its value."""
    import matplotlib as mpl
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    shown = {which: name for which, name in passes.items() if any(row.values.get(which) for row in rows)}
    names = sorted({name for row in rows for values in row.values.values() for name in values})
    width = 3.2 + 5.6 * len(shown)
    columns = legend_columns(names, width)
    head = HEAD_INCHES + 0.24 * -(-(len(names) + 1) // columns)
    # A note that all rows share stands once, in the subtitle.
    common = rows[0].note if len({row.note for row in rows}) == 1 else ""
    size = (width, 0.42 * len(rows) + 0.75 + head)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=size, layout="constrained")
        figure.get_layout_engine().set(rect=(0, 0, 1, 1 - head / size[1]), wspace=0.04)  # type: ignore[union-attr, call-arg]
        grid = figure.subplots(1, len(shown), squeeze=False, sharey=True)[0]
        for axes, (which, name) in zip(grid, shown.items(), strict=True):
            _dot_panel(axes, rows, which, quantity, looks)
            axes.set_title(name, fontweight="bold", pad=8)
        _row_labels(grid[0], rows, common)
        headline(figure, title, " | ".join(part for part in (common, subtitle) if part))
        marks: list[Any] = [
            Line2D([], [], color=looks[n].colour, marker=looks[n].marker, linestyle="", markersize=7, label=n)
            for n in names
        ]
        if quantity == "peak_bytes":
            marks.append(Line2D([], [], color=INK, marker="|", linestyle="", markersize=11, label="minimum"))
        figure.legend(
            handles=marks,
            loc="upper left",
            bbox_to_anchor=(0.05 / size[0], 1 - (HEAD_INCHES - 0.16) / size[1]),
            ncols=columns,
            frameon=False,
            handletextpad=0.2,
            columnspacing=1.4,
        )
    return figure


def legend_columns(names: Sequence[str], width_inches: float) -> int:
    """How many columns of these names fit the width of a figure."""
    longest = max(map(len, names), default=1)
    return max(1, min(MOST_LEGEND_COLUMNS, int(width_inches / (MARK_INCHES + LETTER_INCHES * longest))))


def _row_labels(axes: Axes, rows: Sequence[DotRow], common: str) -> None:
    axes.set_ylim(len(rows) - 0.4, -0.75)
    axes.set_yticks(
        range(len(rows)), [row.label if common else f"{row.label}\n" for row in rows], fontsize=8.5, color=INK
    )
    if common:
        return
    for place, row in enumerate(rows):
        axes.annotate(
            row.note,
            (0, place),
            xycoords=("axes fraction", "data"),
            xytext=(-4, -7),
            textcoords="offset points",
            fontsize=7,
            color=QUIET,
            ha="right",
            va="center",
            annotation_clip=False,
        )


def _dot_panel(axes: Axes, rows: Sequence[DotRow], which: str, quantity: str, looks: dict[str, Look]) -> None:
    _, _, tick, text_of = QUANTITIES[quantity]
    more_is_better = quantity == "tflops"
    value_axis(
        axes,
        [v for row in rows for v in row.drawn(which)],
        tick,
        along="x",
        powers_of_two=quantity == "peak_bytes",
    )
    for place, row in enumerate(rows):
        values = row.values.get(which)
        if not values:
            continue
        best = (max if more_is_better else min)(values, key=values.__getitem__)
        axes.plot(
            [min(row.drawn(which)), max(row.drawn(which))],
            [place, place],
            color="#D5DAE0",
            linewidth=1.4,
            zorder=1,
        )
        heights = stacked(axes, values)
        for name, value in sorted(values.items(), key=lambda item: item[0] == best):
            look = looks[name]
            axes.plot(
                [value],
                [place + heights[name]],
                marker=look.marker,
                color=look.colour,
                markersize=8.5 if name == best else 6.5,
                markeredgecolor="white",
                markeredgewidth=0.8,
                linestyle="",
                zorder=3 if name == best else 2,
            )
        if row.least:
            axes.plot(
                [row.least],
                [place],
                marker="|",
                color=INK,
                markersize=13,
                markeredgewidth=1.6,
                linestyle="",
                zorder=1.5,
            )
        axes.annotate(
            f"{best} {text_of(values[best])}",
            (values[best], place + heights[best]),
            xytext=(0, 6),
            textcoords="offset points",
            fontsize=7,
            color=ink(looks[best].colour),
            ha="right" if more_is_better else "left",
            va="bottom",
        )
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")


def stacked(axes: Axes, values: dict[str, float]) -> dict[str, float]:
    """The offset of each dot from its row (in rows), so that dots at one place do not hide one another."""
    groups: list[list[str]] = []
    last = -1.0
    for name in sorted(values, key=values.__getitem__):
        along = float((axes.transData + axes.transAxes.inverted()).transform((values[name], 0))[0])
        if groups and along - last < 0.008:
            groups[-1].append(name)
        else:
            groups.append([name])
        last = along
    step = {len(group): min(0.17, 0.6 / max(1, len(group) - 1)) for group in groups}
    return {
        name: (place - (len(group) - 1) / 2) * step[len(group)]
        for group in groups
        for place, name in enumerate(group)
    }
