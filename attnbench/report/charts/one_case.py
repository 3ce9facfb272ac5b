"""Four pictures of one case on one backend: mask, weights, tiles, errors over budget."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnbench.conformance.one_case import CaseView, ErrorMap
from attnbench.problem import EMPTY, FULL, PARTIAL
from attnbench.report.charts.palette import INK, QUIET, STYLE
from attnbench.statuses import STATUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PIXELS = 1024  # the most cells of an image per side
ALLOWED, MASKED = "#35618F", "#F1F3F5"
LEAST, MOST = 1e-2, 1e2  # the ends of the colour scale of errors over budget; right up to 1


def draw_pictures(seen: CaseView, folder: Path) -> Iterator[Path]:
    """Write mask.png, weights.png, blocks.png and errors.png; yield each path as soon as it is written."""
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    drawings = (("mask", _mask), ("weights", _weights), ("blocks", _blocks), ("errors", _errors))
    for name, draw in drawings:
        with mpl.rc_context(STYLE | {"axes.grid": False}):
            figure = draw(seen)
            figure.savefig(folder / f"{name}.png")
        yield folder / f"{name}.png"


def pooled(image: NDArray[Any], most: int = PIXELS) -> NDArray[Any]:
    """The image [..., Q, K] pooled by the maximum, so that a single odd element stays visible."""
    for axis in (-2, -1):
        step = -(-image.shape[axis] // most)
        if step > 1:
            places = np.arange(0, image.shape[axis], step)
            image = np.fmax.reduceat(image, places, axis=axis)
    return image


def error_image(errors: ErrorMap) -> NDArray[np.float64]:
    """The image of one tensor: [heads, length] on a log scale from -1 (no error) over 0 (the budget) to 1."""
    with np.errstate(divide="ignore"):
        logs = np.log10(np.clip(errors.over, LEAST, MOST))  # NaN stays NaN
    return logs / np.log10(MOST)


def _figure(seen: CaseView, width: float, height: float, what: str) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    figure.suptitle(f"{what}\n{seen.case.id}", fontsize=9, color=INK, x=0.01, ha="left")
    return figure


def _side_by_side(seen: CaseView, count: int, what: str) -> tuple[Figure, list[Axes]]:
    figure = _figure(seen, 3.2 * count + 0.4, 3.7, what)
    axes = list(figure.subplots(1, count, squeeze=False)[0])
    for axis in axes:
        axis.set_xlabel("key")
    axes[0].set_ylabel("query")
    return figure, axes


def _extent(seen: CaseView) -> tuple[float, float, float, float]:
    return (0, seen.case.k_len, seen.case.q_len, 0)


def _heads_of(seen: CaseView, planes: int) -> tuple[int, ...]:
    return seen.heads if planes > 1 else (0,)


def _head_title(planes: int, head: int) -> str:
    return f"head {head}" if planes > 1 else "every head"


def _mask(seen: CaseView) -> Figure:
    from matplotlib.colors import ListedColormap

    planes = seen.mask.shape[0]
    heads = _heads_of(seen, planes)
    what = f"Allowed pairs (dark: allowed), batch row {seen.batch_row}"
    figure, axes = _side_by_side(seen, len(heads), what)
    for axis, head in zip(axes, heads, strict=True):
        image = pooled(seen.mask[head].astype(np.int8))
        axis.imshow(
            image, cmap=ListedColormap([MASKED, ALLOWED]), vmin=0, vmax=1, extent=_extent(seen), aspect="auto"
        )
        axis.set_title(_head_title(planes, head))
    return figure


def _weights(seen: CaseView) -> Figure:
    what = f"Exact attention weights (colour: share of the row's largest), batch row {seen.batch_row}"
    figure, axes = _side_by_side(seen, len(seen.heads), what)
    for axis, head, plane in zip(axes, seen.heads, seen.weights, strict=True):
        top = plane.max(axis=-1, keepdims=True)
        axis.imshow(
            pooled(plane / np.where(top > 0, top, 1.0)),
            cmap="magma",
            vmin=0,
            vmax=1,
            extent=_extent(seen),
            aspect="auto",
        )
        axis.set_title(f"head {head}")
    return figure


def _blocks(seen: CaseView) -> Figure:
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch
    from matplotlib.ticker import MaxNLocator

    planes = seen.blocks.shape[0]
    heads = _heads_of(seen, planes)
    words = {EMPTY: ("empty", MASKED), PARTIAL: ("partial", "#E0A458"), FULL: ("full", ALLOWED)}
    count = {kind: int((seen.blocks == kind).sum()) for kind in words}
    counts = ", ".join(f"{count[kind]} {word}" for kind, (word, _) in words.items())
    figure, axes = _side_by_side(seen, len(heads), f"Tiles of {seen.block} x {seen.block} tokens: {counts}")
    for axis, head in zip(axes, heads, strict=True):
        colours = ListedColormap([words[kind][1] for kind in (EMPTY, PARTIAL, FULL)])
        query_blocks, key_blocks = seen.blocks[head].shape
        axis.imshow(
            seen.blocks[head],
            cmap=colours,
            vmin=EMPTY,
            vmax=FULL,
            extent=(0, key_blocks, query_blocks, 0),
            aspect="auto",
        )
        for one in (axis.xaxis, axis.yaxis):
            one.set_major_locator(MaxNLocator(integer=True, nbins=8))
        axis.set_title(_head_title(planes, head))
        axis.set_xlabel("key tile")
    axes[0].set_ylabel("query tile")
    figure.legend(
        handles=[Patch(color=colour, label=word) for word, colour in words.values()],
        loc="outside lower right",
        ncols=3,
        frameon=False,
        fontsize=8,
    )
    return figure


def _errors(seen: CaseView) -> Figure:
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    word = "right" if seen.verdict.ok else "WRONG"
    what = f"{seen.backend}: {word}; error over budget, batch row {seen.batch_row}"
    rows = len(seen.errors)
    heads = max(e.over.shape[0] for e in seen.errors)
    figure = _figure(seen, 8.0, 0.9 + rows * max(0.8, min(2.2, 0.24 * heads + 0.5)), what)
    axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
    colours = colormaps["RdBu_r"].with_extremes(bad="#D5D8DC")
    drawn = None
    for axis, errors in zip(axes, seen.errors, strict=True):
        image = error_image(errors)
        length, count = image.shape[1], image.shape[0]
        drawn = axis.imshow(
            np.ma.masked_invalid(pooled(image)),
            cmap=colours,
            vmin=-1,
            vmax=1,
            extent=(0, length, count - 0.5, -0.5),
            aspect="auto",
            interpolation="nearest",
        )
        axis.set_ylabel(f"{errors.name}\n{'key ' if errors.is_by_key else ''}head")
        axis.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
        axis.set_xlabel("key" if errors.is_by_key else "query")
    assert drawn is not None
    bar = figure.colorbar(drawn, ax=list(axes), ticks=[-1, -0.5, 0, 0.5, 1])
    bar.ax.set_yticklabels(["0.01", "0.1", "1 (budget)", "10", "100"], fontsize=7, color=QUIET)
    if not seen.verdict.ok:
        figure.text(
            0.01, -0.02, seen.verdict.reason, fontsize=8, color=STATUS["wrong"].colour, va="top", wrap=True
        )
    return figure
