"""The look of every chart: one colour and one marker per backend, quiet axes, ticks with units."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attnbench.report.cells import bytes_text, milliseconds, three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

import pandas as pd

from attnbench.report.cells import clean

# Okabe and Ito's colours without yellow (too light on white), then two of Tol's; each with a marker of its own.
COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#5B3A8C",
    "#7A7A2A",
    "#882255",
    "#3C3C3C",
)
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "<", ">", "p", "h", "*")
CHART_DASHES = ("-", (0, (5, 1.5)), (0, (1.5, 1.2)))
INK, QUIET, GRID = "#1F2328", "#6A737D", "#E4E7EB"
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.edgecolor": "#B4BAC1",
    "axes.labelcolor": QUIET,
    "axes.titlesize": 10,
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "text.parse_math": False,
    "figure.facecolor": "white",
    "savefig.dpi": 160,
}


@dataclass(frozen=True)
class Look:
    """The colour, marker and dash of one backend."""

    colour: str
    marker: str
    dash: Any


def contrast(one: str, other: str) -> float:
    """The contrast of two colours as WCAG defines it, 1 to 21."""
    low, high = sorted((_luminance(one), _luminance(other)))
    return (high + 0.05) / (low + 0.05)


def _luminance(colour: str) -> float:
    parts = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrasted(colour: str, background: str, least: float) -> str:
    """The colour, moved towards black or white until its contrast with a background is at least `least`."""
    towards = 0 if _luminance(background) > 0.18 else 255
    parts = [int(colour[place : place + 2], 16) for place in (1, 3, 5)]
    for step in range(51):
        mixed = "#" + "".join(f"{round(part + (towards - part) * step / 50):02X}" for part in parts)
        if contrast(mixed, background) >= least:
            return mixed
    return mixed


def ink(colour: str) -> str:
    """The colour, dark enough for text on white."""
    return contrasted(colour, "#FFFFFF", 4.5)


def looks(backends: Iterable[str]) -> dict[str, Look]:
    """One look per backend, by its place in the alphabet: the same in every chart of a report."""
    return {
        name: Look(
            COLOURS[place % len(COLOURS)],
            MARKERS[place % len(MARKERS)],
            CHART_DASHES[(place // len(COLOURS)) % len(CHART_DASHES)],
        )
        for place, name in enumerate(sorted(set(backends)))
    }


def length_tick(tokens: float, _: Any = None) -> str:
    """`2048`, `16k`, `1M`."""
    whole = round(tokens)
    for unit, size in (("M", 1 << 20), ("M", 10**6), ("k", 1 << 10), ("k", 1000)):
        if whole >= 10_000 and whole >= size and whole % size == 0:
            return f"{whole // size}{unit}"
    return str(whole)


def milliseconds_tick(value: float, _: Any = None) -> str:
    """`20 us`, `1 ms`, `5 s`."""
    for unit, size in (("s", 1e3), ("ms", 1.0)):
        if value >= size * 0.999:
            return f"{value / size:g} {unit}"
    return f"{value * 1e3:g} us"


def bytes_tick(value: float, _: Any = None) -> str:
    """`64 KiB`, `2 MiB`."""
    for unit, size in (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"


def plain_tick(value: float, _: Any = None) -> str:
    return f"{value:g}"


QUANTITIES: dict[str, tuple[str, str, Any, Any]] = {
    # quantity: (file, title, tick, text of a value)
    "median_ms": ("time", "Time", milliseconds_tick, milliseconds),
    "tflops": ("tflops", "TFLOP/s of useful work", plain_tick, three_digits),
    "peak_bytes": ("memory", "Peak memory above the inputs", bytes_tick, bytes_text),
}


def value_axis(
    axes: Axes, values: Sequence[float], tick: Any, *, along: str = "y", powers_of_two: bool = False
) -> None:
    """A log axis with a tick at every decade, and between them if there are few."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = min(values), max(values)
    ratio = high / low
    axis = axes.yaxis if along == "y" else axes.xaxis
    room = 1.25 if ratio > 3 else 1.12
    (axes.set_yscale if along == "y" else axes.set_xscale)("log", base=2 if powers_of_two else 10)
    (axes.set_ylim if along == "y" else axes.set_xlim)(low / room, high * room)
    if powers_of_two:
        axis.set_major_locator(LogLocator(base=4 if ratio > 64 else 2, numticks=9))
        axis.set_minor_locator(NullLocator())
    else:
        subs = (
            (1.0,) if ratio > 300 else (1.0, 2.0, 5.0) if ratio > 6 else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
        )
        axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
        axis.set_minor_locator(LogLocator(base=10, subs=tuple(range(2, 10)), numticks=12))
    axis.set_major_formatter(FuncFormatter(tick))
    axis.set_minor_formatter(NullFormatter())
    axis.set_tick_params(which="minor", length=0)


def headline(figure: Figure, title: str, subtitle: str) -> None:
    """Title and subtitle at the left edge; placed in inches, so that figures of any size look alike."""
    width, height = figure.get_size_inches()
    lines = textwrap.wrap(subtitle, width=max(40, int(width * 14.5)), max_lines=2, placeholder=" …")
    figure.text(
        0.15 / width,
        1 - 0.14 / height,
        title,
        fontsize=min(14.0, (72 * width - 24) / (0.7 * len(title))),  # a bold letter: 0.7 of its size wide
        fontweight="bold",
        color=INK,
        va="top",
    )
    figure.text(
        0.15 / width, 1 - 0.46 / height, "\n".join(lines), fontsize=9, color=QUIET, va="top", linespacing=1.35
    )


HEAD_INCHES = 0.92


def spread_apart(heights: Sequence[float], gap: float) -> list[float]:
    """Heights of labels: as near to `heights` as possible, in their order, at least `gap` apart, within 0..1."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    blocks: list[list[float]] = []  # each: sum of shifted heights, count
    for place, index in enumerate(order):
        # Heights shifted by rank x gap need only stay in order: pool those that are not.
        blocks.append([heights[index] - place * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    shifted = [total / count for total, count in blocks for _ in range(int(count))]
    top = 1 - gap * (len(order) - 1)
    placed = [0.0] * len(heights)
    for place, index in enumerate(order):
        placed[index] = min(max(shifted[place], 0.0), max(top, 0.0)) + place * gap
    return placed


PAPER = {"light": "#FFFFFF", "dark": "#14181D"}
# Markers as paths in a square of -1 to 1, the same in the charts and in the text.
SHAPES = {
    "o": "M-.9,0A.9,.9,0,1,1,.9,0A.9,.9,0,1,1,-.9,0Z",
    "s": "M-.8,-.8L.8,-.8L.8,.8L-.8,.8Z",
    "D": "M0,-1.1L.9,0L0,1.1L-.9,0Z",
    "^": "M0,-1L1,.8L-1,.8Z",
    "v": "M0,1L1,-.8L-1,-.8Z",
    "P": "M-.35,-1L.35,-1L.35,-.35L1,-.35L1,.35L.35,.35L.35,1L-.35,1L-.35,.35L-1,.35L-1,-.35L-.35,-.35Z",
    "X": "M-1,-.6L-.6,-1L0,-.4L.6,-1L1,-.6L.4,0L1,.6L.6,1L0,.4L-.6,1L-1,.6L-.4,0Z",
    "<": "M-1,0L.8,-1L.8,1Z",
    ">": "M1,0L-.8,-1L-.8,1Z",
    "p": "M0,-1L.95,-.31L.59,.81L-.59,.81L-.95,-.31Z",
    "h": "M-.87,-.5L0,-1L.87,-.5L.87,.5L0,1L-.87,.5Z",
    "*": "M0,-1L.25,-.3L1,-.3L.4,.15L.6,.9L0,.45L-.6,.9L-.4,.15L-1,-.3L-.25,-.3Z",
}
PAGE_DASHES: tuple[list[float], ...] = ([1, 0], [6, 2], [2, 2])


def looks_of(tables: Sequence[pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """The look of each backend on the page: a colour on light and on dark paper (contrast 3:1 or more), shape, dash.

    Backends with a right answer come first, so that the colours go to what is drawn.
    """
    right = {clean(name, 60) for t in tables for name in t.loc[t["status"] == "ok", "backend"].unique()}
    names = {clean(name, 60) for t in tables for name in t["backend"].unique()}
    return {
        name: {
            "place": place,
            **{paper: contrasted(COLOURS[place % len(COLOURS)], PAPER[paper], 3.2) for paper in PAPER},
            "shape": SHAPES[MARKERS[place % len(MARKERS)]],
            "dash": PAGE_DASHES[(place // len(COLOURS)) % len(PAGE_DASHES)],
        }
        for place, name in enumerate(sorted(names, key=lambda name: (name not in right, name)))
    }
