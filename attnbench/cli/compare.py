"""`attnbench compare`: print what changed between two result sets, the largest effect first."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from attnbench.cli.console import plural, print_all, print_json

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from attnbench.gate import Comparison, GeometricMean


def compare_results(
    base: Path = typer.Argument(..., help="The result set to compare against.", metavar="BASE"),
    head: Path = typer.Argument(..., help="The result set to judge.", metavar="HEAD"),
    rows: int = typer.Option(30, "--rows", min=0, help="How many of the largest changes to print; 0: all."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Compare two result sets case by case: time of HEAD over BASE, with 95 % intervals if samples allow.

    Machines and libraries may differ; the output names what differs.

    Example: [bold]attnbench compare runs/before runs/after[/bold]
    """
    from attnbench.gate import compare
    from attnbench.gate.pairing import read_set

    comparison = compare(read_set(base), read_set(head))
    if as_json:
        print_json(_json(comparison))
        return
    print_all(_lines(comparison, rows or len(comparison.changes)))


def _json(comparison: Comparison) -> dict[str, Any]:
    return {
        "unlike": list(comparison.unlike),
        "changes": [
            {**vars(change), "ratio": vars(change.ratio), "sure": change.sure}
            for change in comparison.changes
        ],
        "geometric_means": [
            {
                "backend": b,
                "which": w,
                "mean": m.mean,
                "spread": _number(m.spread),
                "cases": m.count,
            }
            for (b, w), m in comparison.means.items()
        ],
        "geometric_means_by_mask": [
            {
                "backend": b,
                "mask": m,
                "which": w,
                "mean": mean.mean,
                "spread": _number(mean.spread),
                "cases": mean.count,
            }
            for (b, m, w), mean in comparison.mask_means.items()
        ],
        "statuses": [vars(change) for change in comparison.statuses],
        "only_base": [{"case": r.case_id, "backend": r.backend} for r in comparison.pairs.only_base],
        "only_head": [{"case": r.case_id, "backend": r.backend} for r in comparison.pairs.only_head],
    }


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value


def _lines(comparison: Comparison, rows: int) -> Iterator[RenderableType]:
    from rich.text import Text

    from attnbench.report.cells import clean

    for text in comparison.unlike:
        yield Text(f"unlike: {clean(text)}", style="yellow")
    if comparison.changes:
        yield from _changes(comparison, rows)
    else:
        yield Text(f"none of the {plural(len(comparison.pairs.both), 'common case')} was timed on both sides")
    for change in comparison.statuses:
        style = "bold red" if change.head == "wrong" else "yellow"
        text = f"{clean(change.case)} {clean(change.backend, 60)}: {change.base}, now {change.head}"
        yield Text(f"{text}{f' ({clean(change.reason)})' if change.reason else ''}", style=style)
    for name, only in (("base", comparison.pairs.only_base), ("head", comparison.pairs.only_head)):
        if only:
            example = f"{clean(only[0].case_id)} {clean(only[0].backend, 60)}"
            yield Text(f"only in {name}: {plural(len(only), 'result')}, e.g. {example}")


def _changes(comparison: Comparison, rows: int) -> Iterator[RenderableType]:
    from rich.text import Text

    from attnbench.report.cells import clean, milliseconds
    from attnbench.report.labels import PASS_TEXT

    table = _table("head / base", "backend", "pass", "case", "base", "head", "ratio", "95 % interval")
    for change in comparison.changes[:rows]:
        ratio = change.ratio
        style = "" if not change.sure else "red" if ratio.point > 1 else "green"
        interval = "-" if ratio.low is None or ratio.high is None else f"{ratio.low:.3f} to {ratio.high:.3f}"
        table.add_row(
            Text(clean(change.backend, 60)),
            PASS_TEXT[change.which],
            Text(clean(change.case)),
            milliseconds(ratio.base_ms),
            milliseconds(ratio.head_ms),
            Text(f"{ratio.point:.3f}x", style=style),
            interval,
        )
    yield table
    if len(comparison.changes) > rows:
        yield Text(
            f"and {plural(len(comparison.changes) - rows, 'smaller change')}; --rows 0 prints all",
            style="bright_black",
        )
    means = _table("\ngeometric mean of head / base", "backend", "pass", "cases", "mean", "spread")
    for (backend, which), mean in comparison.means.items():
        means.add_row(Text(clean(backend, 60)), PASS_TEXT[which], *_figures(mean))
    yield means
    if len({mask for _, mask, _ in comparison.mask_means}) > 1:
        by_mask = _table("\nby mask", "backend", "mask", "pass", "cases", "mean", "spread")
        for (backend, mask, which), mean in comparison.mask_means.items():
            by_mask.add_row(
                Text(clean(backend, 60)), Text(clean(mask, 60)), PASS_TEXT[which], *_figures(mean)
            )
        yield by_mask


def _figures(mean: GeometricMean) -> tuple[str, str, str]:
    spread = "-" if math.isnan(mean.spread) else f"x/÷ {mean.spread:.3f}"
    return str(mean.count), f"{mean.mean:.3f}x", spread


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(
        title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0)
    )
    for name in columns:
        table.add_column(
            name, justify="left" if name in ("backend", "pass", "case", "mask") else "right", overflow="fold"
        )
    return table
