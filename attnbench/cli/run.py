"""`attnbench run`: plan the cases, sweep them over the backends, store every result, print the tables."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench.cli.console import out, print_all, print_json, remark
from attnbench.cli.models import run_model_suite
from attnbench.cli.run_plan import plan_of
from attnbench.models.run import MODEL_SUITES
from attnbench.statuses import STATUS_TABLE

if TYPE_CHECKING:
    import pandas as pd

    from attnbench.cli.run_options import RunOptions

MANY_CASES = 40  # above it, the printed table has one line per backend


def run(options: RunOptions) -> None:
    """Run a suite of models or of cases. Exit 1 with --strict if any result failed."""
    statuses = run_model_suite(options) if options.suite in MODEL_SUITES else sweep(options)
    if options.strict and any(statuses[status.word] for status in STATUS_TABLE if status.is_strict):
        raise typer.Exit(1)


def sweep(options: RunOptions) -> Counter[str]:
    """Plan, sweep and store, print; the number of results by status."""
    from attnbench.cli.progress import Progress
    from attnbench.report.frame import frame
    from attnbench.sweep.runner import run_sweep

    plan = plan_of(options)
    remark(str(plan))
    with Progress(folder=plan.folder) as progress:
        sweeping = {"suite": plan.name, "resume": options.resume, "seed": options.seed, **options.of_sweep}
        # Each result is on the disk in `out` as soon as it is known.
        run_sweep(
            plan.cases, plan.backends, device=plan.device, out=plan.folder, on_event=progress, **sweeping
        )
    table = frame(plan.folder)
    print_results(table, plan.folder, as_json=options.as_json)
    return Counter(table["status"])


def print_results(table: pd.DataFrame, folder: Path, *, as_json: bool) -> None:
    """The tables of a sweep, or its figures as JSON."""
    from attnbench.report.frame import as_records
    from attnbench.report.terminal import result_tables

    if as_json:
        print_json(as_records(table))
    else:
        print_all(result_tables(table, cases=table["case"].nunique() <= MANY_CASES))
        out().print(f"\nresults in {folder}; charts and files: attnbench report {folder}", markup=False)
