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


def run(options: RunOptions) -> None:
    """Run a suite of models or of cases. Exit 1 with --strict if any result failed."""
    statuses = run_model_suite(options) if options.suite in MODEL_SUITES else sweep(options)
    if options.strict and any(statuses[status.word] for status in STATUS_TABLE if status.is_strict):
        raise typer.Exit(1)


def sweep(options: RunOptions) -> Counter[str]:
    """Plan, sweep and store, print; the number of results by status."""
    from attnbench.report.frame import frame
    from attnbench.report.progress import Progress
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
    print_results(table, plan.folder, options)
    return Counter(table["status"])


def print_results(table: pd.DataFrame, folder: Path, options: RunOptions) -> None:
    """One screen, and where everything is; or the figures as JSON. Files of a report are written if asked for."""
    from attnbench.report.frame import as_records
    from attnbench.report.terminal import result_tables

    if options.as_json:
        print_json(as_records(table))
    else:
        print_all(result_tables(table, details=options.details))
    where = [f"results in {folder}"]
    if options.report:
        from attnbench.cli.report import write_beside

        where += write_beside(folder)
    else:
        where.append(f"charts and page: attnbench report {folder} --html {folder / 'report.html'}")
    if not options.details:
        where.append(f"every case: attnbench report {folder} --details")
    if options.as_json:
        remark("\n".join(where))
    else:
        out().print("\n" + "\n".join(where), markup=False, soft_wrap=True)
