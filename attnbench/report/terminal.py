"""A result set in a terminal: Rich renderables made of the tables; the caller prints them."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.report.cells import factor, three_digits
from attnbench.report.tables import FIGURES, Section, heading, reasons, sections, standings
from attnbench.statuses import STATUS

MOST_REASONS = 40


def status_text(status: str) -> Text:
    return Text(status, style=STATUS[status].style)


def result_tables(table: pd.DataFrame, *, cases: bool = True) -> Iterator[RenderableType]:
    """The heading, the table by case, the reasons, and last the standing of each backend."""
    yield Text(heading(table), style="bold")
    if table.empty:
        return
    if cases:
        yield from case_tables(sections(table))
        yield Text(
            "\n* fastest; ~ tied with the fastest; ± half of the 10 % to 90 % span",
            style="bright_black",
        )
    yield from reason_lines(table)
    yield standing_table(table)


def case_tables(by_case: list[Section]) -> Iterator[RenderableType]:
    """One block per case, columns aligned over all blocks; `*` is the fastest, `~` is tied with it."""
    rows = [row for section in by_case for row in section.rows]
    name_width = max([len(row.backend) for row in rows] + [len("backend") + 4]) + 2
    widths = [
        max([len(row.cells[place]) for row in rows] + [len(name)]) for place, name in enumerate(FIGURES)
    ]
    for place, section in enumerate(by_case):
        yield Text(f"\n{section.title}", style="bold cyan")
        shown = Table(
            box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0), show_header=place == 0
        )
        shown.add_column("  backend", width=name_width, overflow="fold")
        shown.add_column("status", width=max(len("status"), len("unavailable") - 4))
        for width, name in zip(widths, FIGURES, strict=True):
            shown.add_column(name, justify="right", min_width=width, no_wrap=True)
        for row in section.rows:
            style = "bold green" if row.mark == "*" else "green" if row.mark else ""
            figures = [Text(cell, style=style if n < 2 else "") for n, cell in enumerate(row.cells)]
            backend = Text(f"{row.mark:<2}{row.backend}", style=style)
            shown.add_row(backend, status_text(row.status), *figures)
        yield shown
        for status, names in section.left_out.items():
            yield Text(f"  {status}: {', '.join(names)}", style="bright_black")


def reason_lines(table: pd.DataFrame) -> Iterator[Text]:
    """Why something is not ok, one line per backend and reason."""
    why = reasons(table)
    if why:
        yield Text("\nNot ok, and why", style="bold")
    for one in why[:MOST_REASONS]:
        cases = one.example if one.cases == 1 else f"{one.cases} cases, e.g. {one.example}"
        line = Text("  ").append_text(status_text(one.status)).append(f" {one.backend}: {one.reason}")
        # An unavailable backend is unavailable for every case: an example would say nothing.
        yield line if one.status == "unavailable" else line.append(f" ({cases})", style="bright_black")
    if len(why) > MOST_REASONS:
        yield Text(f"  and {len(why) - MOST_REASONS} more; the CSV that `attnbench report` writes has all")


def standing_table(table: pd.DataFrame) -> Table:
    """One line per backend: how often it is right, how often fastest, how far behind it is on average."""
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
        "fastest or tied",
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
