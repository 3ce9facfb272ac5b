"""`attnbench report`: print result folders as tables, and write files, charts or one page to share."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench.cli.console import print_all, print_json, remark
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from attnbench.gate import ResultSet
    from attnbench.sweep.result import Result

DRAW_TIMEOUT_S = 120.0


def report_results(
    folders: list[Path] = typer.Argument(
        ...,
        help="What `attnbench run --out` wrote: a folder, or a results.jsonl. With --html several; the others are "
        "compared with the first.",
        metavar="DIR...",
    ),
    to: Path | None = typer.Option(
        None, "--out", help="The folder for the files (default: DIR/report).", metavar="FOLDER"
    ),
    html: Path | None = typer.Option(
        None,
        "--html",
        help="Write one self-contained page; no other files unless --out is given.",
        metavar="FILE",
    ),
    charts: bool = typer.Option(True, "--charts/--no-charts", help="Draw the PNG charts."),
    details: bool = typer.Option(False, "--details", help="Print the table of every case, too."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON; write no files."),
) -> None:
    """Print the results on one screen and write Markdown, CSV, Parquet and charts; or a page, with --html.

    Example: [bold]attnbench report runs/quick --html quick.html[/bold], or to compare
    [bold]attnbench report runs/before runs/after --html compared.html[/bold]
    """
    if html is None and len(folders) > 1:
        raise AttnbenchError(
            "several result sets need --html FILE, a page that compares them (or use `attnbench compare`)"
        )
    from attnbench.gate.pairing import read_set

    sets = [read_set(folder) for folder in folders]
    if as_json:
        from attnbench.report.frame import as_records, frame

        print_json([row for one in sets for row in as_records(frame(one.results, one.environments))])
        return
    drawn: dict[int, Path] = {}
    if html is None or to is not None:
        target = to or _beside(folders[0])
        _print_tables(sets[0], details=details)
        worst = _write_files(sets[0], target, charts=charts)
        drawn |= {} if worst is None else {0: worst}
    if html is not None:
        _write_page(sets, html, drawn, pictures=charts)


def _beside(folder: Path) -> Path:
    from attnbench.sweep.store import results_file

    return results_file(folder).parent / "report"


def write_beside(folder: Path) -> list[str]:
    """Write everything beside the results; a line per place."""
    from attnbench.gate.pairing import read_set

    one, target, html = read_set(folder), folder / "report", folder / "report.html"
    worst = _write_files(one, target, charts=True, say=lambda text: None)
    _write_page([one], html, {} if worst is None else {0: worst}, pictures=True, say=lambda text: None)
    return [f"tables in {target / 'report.md'}, charts beside it", f"page in {html}"]


def _print_tables(one: ResultSet, *, details: bool) -> None:
    from attnbench.report.frame import frame
    from attnbench.report.terminal import result_tables

    print_all(result_tables(frame(one.results, one.environments), details=details))


def _write_files(
    one: ResultSet, target: Path, *, charts: bool, say: Callable[[str], None] = remark
) -> Path | None:
    """Write the files; the picture of the worst failure if one was drawn."""
    from attnbench.report.files import write_report
    from attnbench.report.frame import frame
    from attnbench.report.page import furthest_off

    table = frame(one.results, one.environments)
    written = list(write_report(table, target, charts=charts))
    worst, drawn = furthest_off(one.results), None
    if charts and worst is not None and worst.status == "wrong":
        drawn = draw_worst(worst, target / "worst")
        if drawn is not None:
            embed(target / "report.md", worst, drawn)
            remark(f"the worst failure, {worst.backend} on {worst.case_id}: {drawn}")
    pictures = sorted(path.name for path in written if path.suffix == ".png")
    others = ", ".join(path.name for path in written if path.suffix != ".png")
    say(f"\nwritten to {target}: {others}")
    if pictures:
        say(f"pictures: {', '.join(pictures)}")
    return drawn


def _write_page(
    sets: list[ResultSet],
    html: Path,
    drawn: dict[int, Path],
    *,
    pictures: bool,
    say: Callable[[str], None] = remark,
) -> None:
    """Write the page; `drawn` are pictures that exist already, by the index of their set."""
    from tempfile import TemporaryDirectory

    from attnbench.report.page import furthest_off, write_page

    shown = {place: picture.read_bytes() for place, picture in drawn.items()}
    for place, one in enumerate(sets if pictures else []):
        furthest = None if place in shown else furthest_off(one.results)
        with TemporaryDirectory() as folder:
            picture = None if furthest is None else draw_worst(furthest, Path(folder))
            if picture is not None:
                shown[place] = picture.read_bytes()
    write_page(sets, html, shown)
    say(f"written to {html} ({html.stat().st_size / 1e6:.1f} MB); open it in a browser")


def draw_worst(result: Result, folder: Path) -> Path | None:
    """Draw the errors of a result into `folder`; None if its backend no longer runs here.

    A wrong backend may crash: it runs in a process of its own, for DRAW_TIMEOUT_S at most.
    """
    words = ["show", json.dumps(result.case), "--backend", result.backend, "--out", str(folder)]
    words += ["--seed", str(result.seed), "--distribution", result.distribution]
    words += ["--device", result.device.split(":")[0]] if result.device else []
    words += ["--contract", result.contract] if result.contract else []
    program = [sys.executable, "-c", "from attnbench.cli import main; main()", *words]
    picture = folder / "errors.png"
    picture.unlink(missing_ok=True)
    try:
        subprocess.run(program, capture_output=True, timeout=DRAW_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        return None
    return picture if picture.exists() else None


def embed(report: Path, result: Result, picture: Path) -> None:
    """Append the picture to a Markdown report."""
    from attnbench.report.cells import clean

    case, backend, reason = (
        clean(x, 300).replace("`", "'") for x in (result.case_id, result.backend, result.reason)
    )
    text = f"\n## The worst failure\n\n`{backend}` on `{case}`: {reason}\n\n"
    text += (
        f"![Error over what is allowed, by query and head]({picture.relative_to(report.parent).as_posix()})\n"
    )
    with report.open("a", encoding="utf-8") as file:
        file.write(text)
