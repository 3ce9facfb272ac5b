"""`attnbench report`: read result folders: a table here, files beside it, or one page to look at and to share."""

from __future__ import annotations

from pathlib import Path

import typer

from attnbench.cli.compare import read_set
from attnbench.cli.console import print_all, print_json, remark
from attnbench.cli.worst import draw_worst, embed, worst_of
from attnbench.errors import AttnbenchError


def report_results(
    folders: list[Path] = typer.Argument(
        ...,
        help="What `attnbench run --out` wrote: a folder, or a results.jsonl. With --html several: the others are "
        "compared to the first.",
        metavar="DIR...",
    ),
    to: Path | None = typer.Option(None, "--out", help="Where the files go [DIR/report].", metavar="FOLDER"),
    html: Path | None = typer.Option(
        None,
        "--html",
        help="Write one self-contained page, and no other files without --out.",
        metavar="FILE",
    ),
    charts: bool = typer.Option(True, "--charts/--no-charts", help="Draw the PNG charts."),
    cases: bool = typer.Option(
        True, "--cases/--summary", help="Print every case, or only one line per backend."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON and write no files."),
) -> None:
    """Print the results as a table and write Markdown, CSV, Parquet and charts; or a page, with --html.

    Example: [bold]attnbench report runs/quick --html quick.html[/bold], or to compare
    [bold]attnbench report runs/before runs/after --html compared.html[/bold]
    """
    if html is None and len(folders) > 1:
        raise AttnbenchError(
            "several result sets are compared on a page: add --html FILE (or see `attnbench compare`)"
        )
    if as_json:
        from attnbench.report.frame import frame

        print_json([record for folder in folders for record in as_records(frame(folder))])
        return
    if html is None or to is not None:
        for folder in folders[:1]:
            _write_files(folder, to, charts=charts, cases=cases)
    if html is not None:
        _write_page(folders, html, pictures=charts)


def _write_files(folder: Path, to: Path | None, *, charts: bool, cases: bool) -> None:
    from attnbench.report.files import write_report
    from attnbench.report.frame import frame, results_file
    from attnbench.report.terminal import result_tables
    from attnbench.sweep.store import Store

    table = frame(folder)
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


def _write_page(folders: list[Path], html: Path, *, pictures: bool) -> None:
    from tempfile import TemporaryDirectory

    from attnbench.report.page import furthest_off, write_page

    sets = [read_set(folder) for folder in folders]
    drawn: dict[int, bytes] = {}
    for place, one in enumerate(sets if pictures else []):
        worst = furthest_off(one.results)
        with TemporaryDirectory() as folder:
            picture = None if worst is None else draw_worst(worst, Path(folder))
            if picture is not None:
                drawn[place] = picture.read_bytes()
    write_page(sets, html, drawn)
    remark(f"written to {html} ({html.stat().st_size / 1e6:.1f} MB); open it in a browser")


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
