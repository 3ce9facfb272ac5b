"""`attnbench selftest`: does the judge catch liars, and leave right backends alone?"""

from __future__ import annotations

from pathlib import Path

import typer

from attnbench.cli.console import complain, out, remark, require_writable


def judge_the_judge(
    full: bool = typer.Option(
        False, "--full", help="All mutants, dtypes and seeds: up to 20 minutes on 2 cores."
    ),
    jobs: int = typer.Option(
        0, "--jobs", min=0, help="How many parts run side by side; 0: as many as cores."
    ),
    json_out: Path | None = typer.Option(None, "--json", help="Write the whole result to this file."),
    write: Path | None = typer.Option(None, "--write", help="Write the result as Markdown to this file."),
) -> None:
    """Run planted bugs and right implementations past the judge: kill rate and false alarms, with intervals.

    Exit 1 when more mutants are missed, or more right answers accused, than promised.

    Example: [bold]attnbench selftest[/bold]
    """
    from rich.table import Table

    from attnbench.report.selftest import HEAD, as_json, cells, document
    from attnbench.selftest.plan import broken_promises, full_plan, run_parts, small_plan

    require_writable(json_out, write)
    part = run_parts(full_plan() if full else small_plan(), jobs, remark)
    shown = Table(*HEAD, box=None, pad_edge=False)
    for row in cells(part):
        shown.add_row(*row)
    out().print(shown)
    for dtype, named in part.diagnoses.items():
        right = sum(d.is_right for d in named)
        out().print(
            f"{dtype}: the right cause is among the first two named for {right} of {len(named)} mutants"
        )
    for path, text in ((json_out, as_json), (write, document)):
        if path is not None:
            path.write_text(text(part), encoding="utf-8")
    broken = broken_promises(part)
    for sentence in broken:
        complain(sentence)
    raise typer.Exit(1 if broken else 0)
