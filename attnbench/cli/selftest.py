"""`attnbench selftest`: the judge's kill rate on planted bugs and its false-alarm rate on right backends."""

from __future__ import annotations

from pathlib import Path

import typer

from attnbench.cli.console import complain, out, remark, require_writable


def judge_the_judge(
    full: bool = typer.Option(
        False, "--full", help="All mutants, dtypes and seeds: some 40 minutes on 2 cores (estimated)."
    ),
    jobs: int = typer.Option(0, "--jobs", min=0, help="How many parts run in parallel; 0: one per core."),
    json_out: Path | None = typer.Option(None, "--json", help="Write the whole result to this file."),
    write: Path | None = typer.Option(None, "--write", help="Write the result as Markdown to this file."),
) -> None:
    """Judge planted bugs and right implementations: kill rate and false-alarm rate, with intervals.

    Exit 1 if more mutants are missed, or more right answers called wrong, than promised.

    Example: [bold]attnbench selftest[/bold]
    """
    from rich.table import Table

    from attnbench.report.selftest import CHECK_HEAD, HEAD, as_json, cells, check_cells, document
    from attnbench.selftest.plan import full_plan, missed_targets, run_jobs, small_plan

    require_writable(json_out, write)
    part = run_jobs(full_plan() if full else small_plan(), jobs, remark)
    for title, head, rows in (
        ("attnbench check", CHECK_HEAD, check_cells(part)),
        ("the judge on the trials", HEAD, cells(part)),
    ):
        shown = Table(*head, box=None, pad_edge=False, title=title, title_justify="left")
        for row in rows:
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
    broken = missed_targets(part)
    for sentence in broken:
        complain(sentence)
    raise typer.Exit(1 if broken else 0)
