"""How is each backend drawn on the page? A colour for each paper, a shape and a dash: colour is never the only code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from attnbench.report.cells import clean
from attnbench.report.charts.palette import COLOURS, MARKERS, contrasted

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
DASHES: tuple[list[float], ...] = ([1, 0], [6, 2], [2, 2])


def looks_of(tables: Sequence[pd.DataFrame]) -> dict[str, dict[str, Any]]:
    """How each backend is drawn, on light and on dark paper: at least 3:1 against it, with a shape and a dash.

    Those that answered come first, so that the colours go to what is drawn.
    """
    answered = {clean(name, 60) for t in tables for name in t.loc[t["status"] == "ok", "backend"].unique()}
    names = {clean(name, 60) for t in tables for name in t["backend"].unique()}
    return {
        name: {
            "place": place,
            **{paper: contrasted(COLOURS[place % len(COLOURS)], PAPER[paper], 3.2) for paper in PAPER},
            "shape": SHAPES[MARKERS[place % len(MARKERS)]],
            "dash": DASHES[(place // len(COLOURS)) % len(DASHES)],
        }
        for place, name in enumerate(sorted(names, key=lambda name: (name not in answered, name)))
    }
