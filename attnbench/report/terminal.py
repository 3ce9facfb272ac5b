"""A result set on one screen of a terminal: the machine, the winners, a line per backend, what did not run and why.

Rich renderables; the caller prints them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import pandas as pd
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from attnbench.report.cells import clean, factor, milliseconds, three_digits
from attnbench.report.labels import with_families
from attnbench.report.ranking import Winner, winners
from attnbench.report.tables import (
    FIGURES,
    Section,
    SharedReason,
    Standing,
    heading,
    sections,
    shared_reasons,
    standings,
)
from attnbench.statuses import STATUS

MOST_REASONS = 8
MOST_ROWS = 17  # of the grid
MOST_LENGTHS = 3
MOST_NAMED = 4
COLUMNS, LONGEST_LABEL, LONGEST_NAME = 80, 22, 16  # of the grid
PASSES = {"fwd": "forward", "fwd_bwd": "with backward"}


def status_text(status: str) -> Text:
    return Text(status, style=STATUS[status].style)


def result_tables(table: pd.DataFrame, *, details: bool = False) -> Iterator[RenderableType]:
    """One screen; with `details`, the table of each case before it."""
    if details and not table.empty:
        yield from case_tables(sections(table))
        yield Text(
            "\n* fastest; ~ tied with the fastest; ± half of the 10 % to 90 % span\n", style="bright_black"
        )
    yield Text(heading(table), style="bold")
    if table.empty:
        return
    yield from winner_grid(table)
    yield Text("\nBackends   slower by, peak/min: means; error: worst, up to 1 is right", style="bold")
    yield standing_table(standings(table))
    yield from reason_lines(table)


def winner_grid(table: pd.DataFrame) -> Iterator[RenderableType]:
    """The fastest right backend by mask and length, one block per shape and pass."""
    shapes: dict[str, list[Winner]] = {}
    for winner in winners(with_families(table)):
        shapes.setdefault(clean(winner.shape, 60), []).append(winner)
    yield Text("\nFastest right backend   ~ tied with others; -: not timed", style="bold")
    alone, rows, left_out = [], 0, 0
    for shape, group in sorted(shapes.items(), key=lambda item: -len(item[1])):
        if len(group) == 1:
            alone += group
            continue
        lengths = _lengths_that_fit(group)
        grid = _grid(group, lengths)
        if rows and rows + 1 + grid.row_count > MOST_ROWS:
            left_out += len(group)
            continue
        rows += 1 + grid.row_count
        left_out += sum(winner.length not in lengths for winner in group)
        yield Text(shape, style="cyan")
        yield grid
    room = max(3, MOST_ROWS - rows)
    yield from _lone_winners(alone[:room])
    left_out += len(alone[room:])
    if left_out:
        yield Text(f"and {left_out} more cases: --details, or the page", style="bright_black")


def _lengths_that_fit(group: Sequence[Winner]) -> list[int]:
    """The longest lengths of a shape, as many as a terminal has room for."""
    room = COLUMNS - min(LONGEST_LABEL, max(len(clean(winner.family, 40)) for winner in group))
    fitting: list[int] = []
    for length in sorted({winner.length for winner in group}, reverse=True)[:MOST_LENGTHS]:
        room -= 1 + max(len(_winner_cell(winner)) for winner in group if winner.length == length)
        if room < 0 and fitting:
            break
        fitting.insert(0, length)
    return fitting


def _grid(group: Sequence[Winner], lengths: Sequence[int]) -> Table:
    """The winners of one shape: a row per mask, below a row of lengths per pass."""
    grid = _columns("", *map(str, lengths))
    for column in grid.columns[1:]:
        column.no_wrap = True
    rows: dict[str, dict[str, dict[int, Winner]]] = {}
    for winner in group:
        of_pass = rows.setdefault(winner.direction, {})
        of_pass.setdefault(clean(winner.family, 40), {})[winner.length] = winner
    for direction, by_mask in rows.items():
        grid.add_row(PASSES.get(direction, direction), *map(str, lengths), style="bright_black")
        for mask, cells in by_mask.items():
            grid.add_row(Text(mask), *(_winner_cell(cells.get(length)) for length in lengths))
    return grid


def _lone_winners(alone: Sequence[Winner]) -> Iterator[RenderableType]:
    """The winners of shapes with one case, a line each."""
    if not alone:
        return
    lines = _columns("", "")
    for winner in alone:
        words = f"{clean(winner.family, 40)}, {winner.length}, {clean(winner.shape, 60)}"
        words += "" if winner.direction == "fwd" else f", {PASSES.get(winner.direction, winner.direction)}"
        lines.add_row(Text(words), _winner_cell(winner))
    yield lines


def file_and_function(name: str) -> str:
    """`mine.py:attention` for a backend that is named by its path."""
    return name.rpartition("/")[2] if ".py:" in name else name


def _winner_cell(winner: Winner | None) -> Text:
    if winner is None:
        return Text("")
    if not winner.tied:
        return Text(
            "-" if winner.untimed else "none is right", style="bright_black" if winner.untimed else "red"
        )
    name = file_and_function(clean(winner.tied[0], 80))
    name = name if len(name) <= LONGEST_NAME else f"{name[: LONGEST_NAME - 1]}…"
    if winner.is_clear:
        return Text(f"{name} {milliseconds(winner.fastest_ms)}", style="green")
    return Text(f"~{name} {milliseconds(winner.fastest_ms)}")


def standing_table(all_standings: Sequence[Standing]) -> Table:
    """One line per backend that answered: right, at the front, behind the fastest, memory and error at worst."""
    shown = _columns("backend", "right", "fastest/tied", "slower by", "peak/min", "error", header=True)
    for column in shown.columns[1:]:
        column.justify = "right"
    shorter = Counter(file_and_function(one.backend) for one in all_standings)
    for one in all_standings:
        short = file_and_function(one.backend)
        if one.declined == one.cases:
            continue  # a reason says why
        shown.add_row(
            Text(short if shorter[short] == 1 else one.backend),
            _right(one),
            Text(f"{one.fastest} of {one.timed}" if one.timed else "not timed"),
            Text(factor(one.behind)),
            Text(factor(one.memory)),
            Text(three_digits(one.worst_error)),
        )
    return shown


def _right(one: Standing) -> Text:
    right, wrong = one.counts.get("ok", 0), one.counts.get("wrong", 0)
    text = Text(f"{right} of {one.cases}", style="green" if right else "")
    for count, word in ((wrong, "wrong"), (one.failed, "failed")):
        if count:
            text.append(f", {count} {word}", style="bold red")
    return text


def reason_lines(table: pd.DataFrame) -> Iterator[Text]:
    """What is not ok, one line per reason, the worst first; what is not installed in one line."""
    why = shared_reasons(table)
    # `attnbench doctor` knows those that are listed by name, and no file.
    is_listed = {one: one.status == "unavailable" and ".py:" not in one.backends[0] for one in why}
    missing = [name for one in why if is_listed[one] for name in one.backends]
    others = [one for one in why if not is_listed[one]]
    if why:
        yield Text("\nNot ok", style="bold")
    for one in others[:MOST_REASONS]:
        yield _reason_line(one)
    if len(others) > MOST_REASONS:
        yield Text(
            f"  and {len(others) - MOST_REASONS} more reasons: --details, or the page", style="bright_black"
        )
    if missing:
        words = f"{len(missing)} backends, such as {missing[0]}" if len(missing) > 1 else missing[0]
        line = Text("  ").append_text(status_text("unavailable"))
        yield line.append(f" {words}: `attnbench doctor` says what each needs")


def _reason_line(one: SharedReason) -> Text:
    names = ", ".join(file_and_function(name) for name in one.backends[:MOST_NAMED])
    names += f" and {len(one.backends) - MOST_NAMED} more" if len(one.backends) > MOST_NAMED else ""
    cases = "" if one.cases is None else f" ({one.cases} {'case' if one.cases == 1 else 'cases'})"
    return (
        Text("  ").append_text(status_text(one.status)).append(f" {names}{cases}: {clean(one.reason, 160)}")
    )


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


def _columns(*names: str, header: bool = False) -> Table:
    table = Table(
        box=None,
        pad_edge=False,
        show_header=header,
        header_style="bright_black",
        padding=(0, 1, 0, 0),
    )
    for name in names:
        table.add_column(name, overflow="fold")
    return table
