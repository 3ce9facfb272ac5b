"""The page's charts as Vega-Lite specifications; data, colours and marks come in by name."""

from __future__ import annotations

from functools import cache
from typing import Any

import altair as alt

MILLISECONDS = (
    "datum.value >= 1000 ? format(datum.value / 1000, '~r') + ' s' : "
    "datum.value >= 1 ? format(datum.value, '~r') + ' ms' : format(datum.value * 1000, '~r') + ' us'"
)
BYTES = (
    "datum.value >= 1073741824 ? format(datum.value / 1073741824, '~g') + ' GiB' : datum.value >= 1048576 ? "
    "format(datum.value / 1048576, '~g') + ' MiB' : datum.value >= 1024 ? format(datum.value / 1024, '~g') + ' KiB' : "
    "datum.value + ' B'"
)
TOKENS = (
    "datum.value >= 16384 && datum.value % 1024 == 0 ? (datum.value / 1024) + 'k' : format(datum.value, 'd')"
)
PLAIN, SHARE = "format(datum.value, '~g')", "format(datum.value, '~%')"
RATE = "format(datum.value, '~s')"
TIMES = "format(datum.value, '~g') + 'x'"

# chart over the length: title, label of a tick
LENGTH_CHARTS = {
    "time": ("Time", MILLISECONDS),
    "tflops": ("TFLOP/s of useful work", PLAIN),
    "share": ("Share of the measured roof", SHARE),
    "memory": ("Peak memory above the inputs", BYTES),
}


@cache
def specifications() -> dict[str, dict[str, Any]]:
    """Every chart by name. Colours, shapes and dashes are values of the data: no name becomes part of an expression."""
    charts = {name: curves(title, label) for name, (title, label) in LENGTH_CHARTS.items()}
    charts |= {"roofline": roofline(), "noise": noise(), "samples": samples(), "compare": ratios()}
    return {name: chart.to_dict() for name, chart in charts.items()}


def _marks() -> dict[str, Any]:
    return {
        "color": alt.Color("colour:N", scale=None),
        "detail": alt.Detail("backend:N"),
        "tooltip": alt.Tooltip("text:N"),
    }


def _log(**more: Any) -> alt.Scale:
    return alt.Scale(type="log", nice=False, padding=10, **more)


def curves(title: str, label: str) -> alt.LayerChart:
    """A quantity over the length: a line per backend, bars from the 10 % to the 90 % quantile of the samples.

    `across` and `up` are the ticks of the axes: those of a log scale crowd at the end of a decade.
    """
    across, up = alt.param("across", value=[]), alt.param("up", value=[])
    axis = alt.Axis(values={"expr": "across"}, labelExpr=TOKENS, grid=False, labelOverlap="greedy")
    x = alt.X("place:Q", title="sequence length (tokens)", scale=_log(base=2), axis=axis)
    y = alt.Y("value:Q", title=None, scale=_log(), axis=_axis(label, "up"))
    base = alt.Chart(alt.NamedData("points")).encode(x=x, y=y, **_marks())
    line = base.mark_line(strokeWidth=2, clip=True).encode(strokeDash=alt.StrokeDash("dash:N", scale=None))
    spread = base.mark_rule(strokeWidth=3, opacity=0.4).encode(y=alt.Y("low:Q", title=None), y2="high:Q")
    point = base.mark_point(filled=True, size=70, opacity=1).encode(shape=alt.Shape("shape:N", scale=None))
    return _whole(alt.layer(spread, line, point).add_params(across, up), title, 250)


def roofline() -> alt.LayerChart:
    """Achieved rate over arithmetic intensity, under the measured roofs of the machine."""
    across, up = alt.param("across", value=[]), alt.param("up", value=[])
    title = "useful FLOP per byte that must move"
    x = alt.X("intensity:Q", title=title, scale=_log(), axis=_axis(PLAIN, "across"))
    y = alt.Y("rate:Q", title="FLOP/s", scale=_log(), axis=_axis(RATE, "up"))
    roofs = (
        alt.Chart(alt.NamedData("roofs"))
        .mark_line(strokeWidth=1.5)
        .encode(x=x, y=y, detail="name:N", strokeDash=alt.StrokeDash("dash:N", scale=None), tooltip="name:N")
    )
    label = (
        alt.Chart(alt.NamedData("roofs"))
        .transform_filter("datum.label != ''")
        .mark_text(align="right", dy=-7, dx=-4, fontSize=11)
        .encode(x=x, y=y, text="label:N")
    )
    point = (
        alt.Chart(alt.NamedData("points"))
        .mark_point(filled=True, size=70, opacity=1)
        .encode(x=x, y=y, shape=alt.Shape("shape:N", scale=None), **_marks())
    )
    return _whole(alt.layer(roofs, label, point).add_params(across, up), "Roofline", 320)


def noise() -> alt.LayerChart:
    """The spread of the samples per backend: from the 10 % to the 90 % quantile of its passes."""
    y = alt.Y("backend:N", title=None, sort=None, axis=alt.Axis(labelLimit=150, grid=True))
    across = alt.param("across", value=[])
    x_axis = _axis(SHARE, "across")
    title = "half the 10 % to 90 % span over the median"
    x = alt.X("median:Q", title=title, scale=_log(), axis=x_axis)
    base = alt.Chart(alt.NamedData("points")).encode(y=y, x=x, **_marks())
    span = base.mark_rule(strokeWidth=5, opacity=0.35).encode(x=alt.X("low:Q", title=title), x2="high:Q")
    middle = base.mark_point(filled=True, size=80, opacity=1).encode(shape=alt.Shape("shape:N", scale=None))
    return _whole(alt.layer(span, middle).add_params(across), "Spread of the samples, by backend", 200)


def samples() -> alt.LayerChart:
    """Every sample of one result by round: shows a machine that slows down or is disturbed."""
    x = alt.X("round:Q", title="round", axis=alt.Axis(tickMinStep=1, format="d", grid=False))
    y_axis = alt.Axis(labelExpr=MILLISECONDS, tickCount=6)
    y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False, padding=10), axis=y_axis)
    base = alt.Chart(alt.NamedData("points")).encode(x=x, y=y, **_marks())
    point = base.mark_point(size=45, opacity=0.8).encode(shape=alt.Shape("shape:N", scale=None))
    return _whole(alt.layer(point), "Samples, round by round", 220)


def ratios() -> alt.LayerChart:
    """Every pass of both sets as a ratio with its interval, one row per backend; the gate's margin as a band."""
    y = alt.Y("backend:N", title=None, sort=None, axis=alt.Axis(labelLimit=150, grid=True))
    across = alt.param("across", value=[])
    x_axis = _axis(TIMES, "across")
    x = alt.X("point:Q", title="time, over the first set", scale=_log(), axis=x_axis)
    band = (
        alt.Chart(alt.NamedData("margin"))
        .mark_rect(opacity=0.12)
        .encode(x=alt.X("from:Q", scale=_log()), x2="to:Q")
    )
    one = alt.Chart(alt.NamedData("margin")).mark_rule(strokeDash=[4, 3]).encode(x="one:Q")
    base = alt.Chart(alt.NamedData("points")).encode(y=y, x=x, yOffset="offset:Q", **_marks())
    span = base.mark_rule(strokeWidth=2, opacity=0.3).encode(x=alt.X("low:Q", title=None), x2="high:Q")
    middle = base.mark_point(filled=True, size=45, opacity=0.9).encode(shape=alt.Shape("shape:N", scale=None))
    return _whole(alt.layer(band, one, span, middle).add_params(across), "Every pass, by backend", 200)


def _axis(label: str, ticks: str) -> alt.Axis:
    return alt.Axis(labelExpr=label, values={"expr": ticks}, labelOverlap="greedy")


def _whole(chart: Any, title: str, height: int) -> alt.LayerChart:
    fit = alt.AutoSizeParams(type="fit-x", contains="padding")
    description = f"{title}; the same figures are in the table below"
    return chart.properties(
        title=title, description=description, width="container", height=height, autosize=fit
    )
