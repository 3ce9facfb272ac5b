"""A result set as Markdown: the tables of the terminal, every foreign text inert."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from attnbench.report.cells import NOTHING, factor, markdown_cell, three_digits
from attnbench.report.tables import FIGURES, Section, heading, reasons, sections, standings


def markdown(table: pd.DataFrame, charts: Sequence[str] = ()) -> str:
    """Heading, standing of each backend, charts, the table by case, and the reasons."""
    blocks = ["# Results", markdown_cell(heading(table))]
    if not table.empty:
        blocks += ["## Backends", standing_table(table)]
        blocks += [f"![{name.removesuffix('.png')}]({name})" for name in charts]
        blocks += [
            "## Cases",
            "Bold: the fastest. ~: tied with the fastest. ±: half of the 10 % to 90 % span.",
        ]
        blocks += [case_block(section) for section in sections(table)]
        blocks += ["## Not ok, and why", reason_list(table)]
    return "\n\n".join(blocks) + "\n"


def standing_table(table: pd.DataFrame) -> str:
    """One line per backend."""
    rows = [
        [
            markdown_cell(one.backend),
            markdown_cell(one.version),
            f"{one.counts.get('ok', 0)} of {one.cases}",
            str(one.counts.get("wrong", 0)),
            str(one.failed),
            str(one.declined),
            f"{one.fastest} of {one.timed}" if one.timed else "not timed",
            factor(one.behind),
            three_digits(one.worst_error),
        ]
        for one in standings(table)
    ]
    head = [
        "backend",
        "version",
        "right",
        "wrong",
        "failed",
        "refused or unavailable",
        "fastest or tied",
        "behind the fastest",
    ]
    return grid([*head, "worst error/budget"], rows, texts=2)


def case_block(section: Section) -> str:
    """One case: its name in words and its table."""
    rows = []
    for row in section.rows:
        name, mark = markdown_cell(row.backend), "**" if row.mark == "*" else ""
        name = f"\\~ {name}" if row.mark == "~" else name
        cells = [
            f"{mark}{cell}{mark}" if place < 2 and cell != NOTHING else cell
            for place, cell in enumerate(row.cells)
        ]
        rows.append([f"{mark}{name}{mark}", row.status, *cells])
    left_out = [
        f"{status}: {', '.join(map(markdown_cell, names))}" for status, names in section.left_out.items()
    ]
    table = grid(["backend", "status", *FIGURES], rows, texts=2) if rows else ""
    return "\n\n".join(
        part for part in (f"### {markdown_cell(section.title)}", table, "; ".join(left_out)) if part
    )


def reason_list(table: pd.DataFrame) -> str:
    """One line per backend and reason."""
    lines = []
    for one in reasons(table):
        cases = (
            "" if one.status == "unavailable" else f" ({one.cases} cases, e.g. {markdown_cell(one.example)})"
        )
        lines.append(f"- {one.status} **{markdown_cell(one.backend)}**: {markdown_cell(one.reason)}{cases}")
    return "\n".join(lines) or "Everything is ok."


def grid(head: Sequence[str], rows: Sequence[Sequence[str]], texts: int) -> str:
    """A Markdown table of cells that are inert already; the first `texts` columns are left-aligned."""
    rule = [":--" if place < texts else "--:" for place in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))
