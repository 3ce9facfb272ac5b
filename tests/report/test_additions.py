"""A column and a status are each added by one entry in one file of a copy of the package, and then shown everywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NEW_COLUMN = (
    'Column("saved_over_peak", "real", lambda f: f.result.memory_bytes["saved"] / f.peak_bytes if f.peak_bytes '
    'else None, "times", "saved/peak"),'
)
NEW_STATUS = (
    'Status(word="melted", meaning="the machine caught fire", kind="broken", colour="#123456", glyph="hot", '
    'style="blue"),'
)
# Writes every output of a report on the results of a file, from the package that is first on the path.
PROGRAM = """
import io, json, sys
from pathlib import Path

from rich.console import Console

from attnbench.gate import ResultSet
from attnbench.models.record import MODEL_STATUSES
from attnbench.report.charts.matrices import draw_support, matrix
from attnbench.report.files import write_report
from attnbench.report.frame import as_records, frame
from attnbench.report.page import page
from attnbench.report.tables import reasons, standings
from attnbench.report.terminal import result_tables
from attnbench.sweep.result import Result

records, folder = Path(sys.argv[1]), Path(sys.argv[2])
results = [Result.from_json(record) for record in json.loads(records.read_text())]
table = frame(results)
written = list(write_report(table, folder, charts=False))
stream = io.StringIO()
console = Console(file=stream, width=200, force_terminal=True, color_system="standard")
for one in result_tables(table, details=True):
    console.print(one)
support = draw_support(matrix(table), "")
(folder / "shown.json").write_text(json.dumps({
    "columns": {name: str(dtype) for name, dtype in table.dtypes.items()},
    "records": as_records(table),
    "terminal": stream.getvalue(),
    "markdown": (folder / "report.md").read_text(),
    "csv": (folder / "results.csv").read_text(),
    "page": page([ResultSet(results, {}, "set")]),
    "reasons": [one.status for one in reasons(table)],
    "failed": {one.backend: one.failed for one in standings(table)},
    "legend": [text.get_text() for text in support.legends[0].get_texts()],
    "models": MODEL_STATUSES,
}))
"""


def copy_with(folder: Path, entries: dict[str, tuple[str, str]]) -> Path:
    """A copy of the package; in each named file the text after a marker is inserted once."""
    shutil.copytree(ROOT / "attnbench", folder / "attnbench", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (marker, entry) in entries.items():
        path = folder / "attnbench" / name
        text = path.read_text(encoding="utf-8")
        assert text.count(marker) == 1, name
        path.write_text(text.replace(marker, f"{entry}\n{marker}"), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, Any]:
    """What a report shows of three results, one of them with the new status."""
    from tests.page.sets import a_result

    folder = tmp_path_factory.mktemp("copy")
    first_of_failures = 'Status(\n        word="crashed"'
    last_column = 'Column("prepare_total_ms"'
    copy = copy_with(
        folder,
        {
            "report/columns.py": (f"    {last_column}", f"    {NEW_COLUMN}"),
            "statuses.py": (f"    {first_of_failures}", f"    {NEW_STATUS}"),
        },
    )
    memory = {"fwd_peak": 1000, "saved": 250, "bwd_peak": 2000}
    records = [
        a_result("quick", direction="fwd_bwd", memory_bytes=memory).to_json(),
        a_result("idle", direction="fwd_bwd", status="refused", reason="has no such mask").to_json(),
        a_result("oven", direction="fwd_bwd", status="error", reason="too hot").to_json()
        | {"status": "melted"},
        a_result("gone", direction="fwd_bwd", status="crashed", reason="killed").to_json(),
    ]
    (folder / "results.json").write_text(json.dumps(records))
    (folder / "program.py").write_text(PROGRAM)
    words = [sys.executable, str(folder / "program.py"), str(folder / "results.json"), str(folder / "out")]
    environment = os.environ | {"PYTHONPATH": str(copy)}
    done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "out" / "shown.json").read_text())


def page_data(text: str) -> dict[str, Any]:
    start = text.index('id="results">') + len('id="results">')
    return json.loads(text[start : text.index("</script>", start)])


def test_a_new_column_is_in_the_frame_and_its_files(shown: dict[str, Any]) -> None:
    assert shown["columns"]["saved_over_peak"] == "float64"
    assert [row["saved_over_peak"] for row in shown["records"]] == [0.125, None, None, None]
    assert "saved_over_peak" in shown["csv"].splitlines()[0]


def test_a_new_column_with_a_title_is_in_the_terminal_in_markdown_and_on_the_page(
    shown: dict[str, Any],
) -> None:
    for text in (shown["terminal"], shown["markdown"]):
        assert "saved/peak" in text
        assert "0.125x" in text
    data = page_data(shown["page"])
    assert data["columns"] == [["saved/peak", "saved_over_peak", "times"]]
    assert [row[data["row_fields"].index("saved_over_peak")] for row in data["rows"]] == [
        0.125,
        None,
        None,
        None,
    ]


def test_a_new_status_is_shown_in_its_colour_at_its_place(shown: dict[str, Any]) -> None:
    assert "\x1b[34mmelted\x1b[0m" in shown["terminal"]  # blue
    assert shown["reasons"] == ["melted", "crashed", "refused"]
    assert shown["legend"] == ["✓ ok", "hot melted", "crash crashed", "– refused"]
    assert shown["failed"] == {"quick": 0, "idle": 0, "oven": 1, "gone": 1}
    assert "| oven | melted |" in shown["markdown"]
    assert "melted" in page_data(shown["page"])["words"]
    assert '<tr class="melted">' in shown["page"]
    assert "melted" in shown["models"]
