"""How does a result set look in a terminal? Rich renderables made of the tables; the caller prints them."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.report.cells import factor, three_digits
from attnbench.report.tables import FIGURES, Section, heading, reasons, sections, standings

COLOURS = {
    "ok": "green",
    "wrong": "bold red",
    "crashed": "red",
    "error": "red",
    "timeout": "magenta",
    "oom": "magenta",
    "refused": "yellow",
    "unavailable": "bright_black",
}
MOST_REASONS = 40


def status_text(status: str) -> Text:
    return Text(status, style=COLOURS.get(status, ""))


def result_tables(table: pd.DataFrame, *, cases: bool = True) -> Iterator[RenderableType]:
    """The heading, the table by case, the reasons, and last the standing of each backend."""
    yield Text(heading(table), style="bold")
    if table.empty:
        return
    if cases:
        yield from case_tables(sections(table))
        yield Text(
            "\n* fastest; ~ cannot be told from the fastest; ± half of the 10 % to 90 % span",
            style="bright_black",
        )
    yield from reason_lines(table)
    yield standing_table(table)


def case_tables(found: list[Section]) -> Iterator[RenderableType]:
    """One block per case, columns aligned over all blocks; `*` is the fastest, `~` cannot be told from it."""
    lines = [line for section in found for line in section.lines]
    name_width = max([len(line.backend) for line in lines] + [len("backend") + 4]) + 2
    widths = [
        max([len(line.cells[place]) for line in lines] + [len(name)]) for place, name in enumerate(FIGURES)
    ]
    for place, section in enumerate(found):
        yield Text(f"\n{section.title}", style="bold cyan")
        shown = Table(
            box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), show_header=place == 0
        )
        shown.add_column("  backend", width=name_width, overflow="fold")
        shown.add_column("status", width=max(len("status"), len("unavailable") - 4))
        for width, name in zip(widths, FIGURES, strict=True):
            shown.add_column(name, justify="right", min_width=width, no_wrap=True)
        for line in section.lines:
            style = "bold green" if line.mark == "*" else "green" if line.mark else ""
            figures = [Text(cell, style=style if where < 2 else "") for where, cell in enumerate(line.cells)]
            backend = Text(f"{line.mark:<2}{line.backend}", style=style)
            shown.add_row(backend, status_text(line.status), *figures)
        yield shown
        for status, names in section.left_out.items():
            yield Text(f"  {status}: {', '.join(names)}", style="bright_black")


def reason_lines(table: pd.DataFrame) -> Iterator[Text]:
    """Why something is not ok, one line per backend and reason."""
    found = reasons(table)
    if found:
        yield Text("\nNot ok, and why", style="bold")
    for one in found[:MOST_REASONS]:
        where = one.example if one.cases == 1 else f"{one.cases} cases, e.g. {one.example}"
        line = Text("  ").append_text(status_text(one.status)).append(f" {one.backend}: {one.reason}")
        # An unavailable backend is unavailable for every case: naming one would say nothing.
        yield line if one.status == "unavailable" else line.append(f" ({where})", style="bright_black")
    if len(found) > MOST_REASONS:
        yield Text(f"  and {len(found) - MOST_REASONS} more; the CSV that `attnbench report` writes has all")


def standing_table(table: pd.DataFrame) -> Table:
    """Which backend is right, how often it is fastest, how far behind it is on the others."""
    shown = Table(
        title="\nBackends",
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 2, 0, 0),
    )
    shown.add_column("backend", overflow="fold")
    shown.add_column("version")
    for name in (
        "right",
        "wrong",
        "failed",
        "refused",
        "fastest or level",
        "behind the fastest",
        "worst error/budget",
    ):
        shown.add_column(name, justify="right")
    for one in standings(table):
        if one.counts.get("unavailable", 0) == one.cases:
            shown.add_row(Text(one.backend, style="bright_black"), Text("unavailable", style="bright_black"))
            continue
        shown.add_row(
            Text(one.backend),
            Text(one.version),
            Text(f"{one.counts.get('ok', 0)} of {one.cases}", style="green" if one.counts.get("ok") else ""),
            _count(one.counts.get("wrong", 0), "bold red"),
            _count(one.failed, "red"),
            _count(one.counts.get("refused", 0), "yellow"),
            Text(f"{one.fastest} of {one.timed}" if one.timed else "not timed"),
            Text(factor(one.behind)),
            Text(three_digits(one.worst_error)),
        )
    return shown


def _count(number: int, style: str) -> Text:
    return Text(str(number), style=style if number else "bright_black")
