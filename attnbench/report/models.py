"""The results of a model suite: one table, and the charts of its curves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.report.cells import NOTHING, clean, factor, three_digits
from attnbench.report.charts.palette import CHART_DASHES, COLOURS, INK, QUIET, STYLE
from attnbench.statuses import STATUS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from rich.table import Table

    from attnbench.models.record import Record

REACHED = "reached, or why"
FIXED = ("task", "dtype", "backend", "status")
MODEL_COLUMNS = (*FIXED, "loss", "over budget", "of seeds", "spikes", "not finite", "ms", REACHED)


def model_table(records: Sequence[Record]) -> Table:
    """One line per (task, dtype, backend): what it reached, how far it is off, and its cost."""
    from rich.table import Table
    from rich.text import Text

    lines = [_line(r) for r in sorted(_shown(records), key=lambda r: (r["task"], r["dtype"], r["backend"]))]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    columns = [
        name for name in MODEL_COLUMNS if name in FIXED or any(line[name] != NOTHING for line in lines)
    ]
    for name in columns:
        right = name not in ("task", "dtype", "backend", "status", REACHED)
        table.add_column(name, justify="right" if right else "left", no_wrap=name in FIXED)
    for line in lines:
        colour = STATUS[line["status"]].colour
        table.add_row(*(Text(line[n], style=colour if n == "status" else "") for n in columns))
    return table


def _line(record: Record) -> dict[str, str]:
    """The cells of one record by column."""
    loss = next((x for x in reversed(record["curves"].get("loss", [])) if x is not None), None)
    counts, figures = record["counts"], record["figures"]
    return {
        "task": record["task"],
        "dtype": record["dtype"],
        "backend": clean(record["backend"], 40),
        "status": record["status"],
        "loss": three_digits(loss),
        "over budget": factor(record["over_budget"]),
        "of seeds": three_digits(record["deviation"].get("of_seed_spread")),
        "spikes": str(counts.get("spikes", NOTHING)),
        "not finite": str(counts.get("non_finite", NOTHING)),
        "ms": three_digits(figures.get("step_ms", figures.get("token_ms"))),
        REACHED: clean(record["reason"] or _reached(record), 160),
    }


def _shown(records: Sequence[Record]) -> list[Record]:
    return [r for r in records if r["role"] == "backend" or r["status"] == "unavailable"]


def _reached(record: Record) -> str:
    words = (("held_out_loss", "held out"), ("accuracy", "accuracy"), ("f1", "F1"), ("roc_auc", "AUC"))
    figures = record["figures"]
    return ", ".join(f"{word} {figures[name]:.2f}" for name, word in words if name in figures)


def draw_models(records: Sequence[Record], path: Path) -> Path:
    """The charts of a suite in one picture: one column per task, rows of losses and of errors over budget."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    ran = [r for r in records if r["role"] == "backend" and r["curves"]]
    tasks = list(dict.fromkeys(r["task"] for r in ran))
    dtypes = list(dict.fromkeys(r["dtype"] for r in ran))
    names = sorted({r["backend"] for r in ran})
    kinds = ("loss", "budget") if any("loss" in r["curves"] for r in ran) else ("budget",)
    rows = [(dtype, kind) for dtype in dtypes for kind in kinds]
    with mpl.rc_context(STYLE):
        columns = max(1, len(tasks))
        figure = Figure(figsize=(3.1 * columns + 1.8, 2.3 * max(1, len(rows)) + 0.4), layout="constrained")
        axes = figure.subplots(max(1, len(rows)), columns, squeeze=False)
        for line, (dtype, kind) in zip(axes, rows, strict=False):
            line[0].set_ylabel(f"{dtype}: {'loss' if kind == 'loss' else 'off / allowed'}")
            for axis, task in zip(line, tasks, strict=True):
                runs = [r for r in ran if (r["task"], r["dtype"]) == (task, dtype)]
                if kind == "loss":
                    exact = [r for r in records if r["task"] == task and r["role"] in ("exact", "seed")]
                    _draw_losses(axis, runs, exact, names)
                else:
                    _draw_budget(axis, runs, names)
        for axis, task in zip(axes[0], tasks, strict=False):
            axis.set_title(task)
        if ran:
            shown = {h.get_label(): h for line in axes for a in line for h in a.get_lines()}
            shown = {n: h for n, h in shown.items() if not str(n).startswith("_")}
            figure.legend(shown.values(), shown.keys(), loc="outside right upper", frameon=False, fontsize=8)
        figure.savefig(path)
    return path


def _look(name: str, names: Sequence[str]) -> dict[str, Any]:
    place = names.index(name)
    return {
        "color": COLOURS[place % len(COLOURS)],
        "linestyle": CHART_DASHES[place // len(COLOURS) % len(CHART_DASHES)],
    }


def _draw_losses(axes: Axes, runs: Sequence[Record], exact: Sequence[Record], names: Sequence[str]) -> None:
    seeds = [r["curves"]["loss"] for r in exact if r["role"] in ("exact", "seed") and r["curves"]]
    if seeds:
        low, high = ([f(step) for step in zip(*seeds, strict=False)] for f in (min, max))
        axes.fill_between(range(len(low)), low, high, color="#DDE3EA", linewidth=0, label="_seeds")
    for r in exact:
        if r["role"] == "exact" and r["curves"]:
            axes.plot(r["curves"]["loss"], color=INK, linewidth=2.4, label="float64")
    for r in runs:
        axes.plot(r["curves"]["loss"], linewidth=1.0, label=r["backend"], **_look(r["backend"], names))


def _draw_budget(axes: Axes, runs: Sequence[Record], names: Sequence[str]) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    least = 1e-3
    for r in runs:
        curve = r["curves"].get("loss_over_budget", r["curves"].get("over_budget", []))
        values = [float("nan") if x is None else max(x, least) for x in curve]
        axes.plot(values, linewidth=1.2, label=r["backend"], **_look(r["backend"], names))
    axes.axhline(1.0, color=STATUS["wrong"].colour, linewidth=1.0, label="_allowed")
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("step" if any("loss" in r["curves"] for r in runs) else "position")
    axes.annotate(
        "allowed", (0.02, 1.0), xycoords=("axes fraction", "data"), fontsize=7, color=QUIET, va="bottom"
    )
