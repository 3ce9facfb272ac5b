"""`attnbench report`: read a result folder: a table here, and Markdown, CSV, Parquet and charts beside it."""

from __future__ import annotations

from pathlib import Path

import typer

from attnbench.cli.console import print_all, print_json, remark
from attnbench.cli.worst import draw_worst, embed, worst_of


def report_results(
    folder: Path = typer.Argument(
        ..., help="What `attnbench run --out` wrote: a folder, or a results.jsonl.", metavar="DIR"
    ),
    to: Path | None = typer.Option(None, "--out", help="Where the files go [DIR/report].", metavar="FOLDER"),
    charts: bool = typer.Option(True, "--charts/--no-charts", help="Draw the PNG charts."),
    cases: bool = typer.Option(
        True, "--cases/--summary", help="Print every case, or only one line per backend."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON and write no files."),
) -> None:
    """Print the results as a table and write Markdown, CSV, Parquet and charts.

    Example: [bold]attnbench report runs/quick --out report[/bold]
    """
    from attnbench.report.files import write_report
    from attnbench.report.frame import frame, results_file
    from attnbench.report.terminal import result_tables
    from attnbench.sweep.store import Store

    table = frame(folder)
    if as_json:
        print_json(as_records(table))
        return
    print_all(result_tables(table, cases=cases))
    target = to or results_file(folder).parent / "report"
    written = list(write_report(table, target, charts=charts))
    worst = worst_of(Store(results_file(folder).parent).read()) if charts else None
    drawn = None if worst is None else draw_worst(worst, target / "worst")
    if worst is not None and drawn is not None:
        embed(target / "report.md", worst, drawn)
        remark(f"the worst failure, {worst.backend} on {worst.case_id}: {drawn}")
    pictures = sorted(path.name for path in written if path.suffix == ".png")
    others = ", ".join(path.name for path in written if path.suffix != ".png")
    remark(f"\nwritten to {target}: {others}")
    if pictures:
        remark(f"pictures: {', '.join(pictures)}")


def as_records(table: object) -> list[dict[str, object]]:
    """The frame as JSON values, one object a row; missing figures are null, raw samples left out."""
    import json

    import pandas as pd

    assert isinstance(table, pd.DataFrame)
    shown = table.drop(columns=["fwd_samples_ms", "bwd_samples_ms"])
    records = json.loads(shown.to_json(orient="records"))
    for record in records:
        record["errors"], record["prepare_ms"] = (
            json.loads(record["errors"]),
            json.loads(record["prepare_ms"]),
        )
    return records
