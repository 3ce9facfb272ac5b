"""The page's file: its text, its size, the contrast of its colours, and what it never contains."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from attnbench.cli.app import app
from attnbench.errors import BackendUnavailable
from attnbench.gate.pairing import read_set
from attnbench.report.charts.palette import PAPER, contrast
from attnbench.report.frame import frame
from attnbench.report.labels import with_families
from attnbench.report.page import page, rows
from attnbench.report.page.render import json_text
from attnbench.report.page.rows import QUANTILES, page_rows
from tests.page.sets import a_result, a_set, many, small_set

REAL = Path(__file__).resolve().parents[2] / "results" / "cpu-2-cores"


def data_of(text: str) -> dict:
    match = re.search(r'<script type="application/json" id="results">(.*?)</script>', text, re.DOTALL)
    assert match is not None
    return json.loads(match.group(1))


def test_the_page_of_this_repositorys_results_is_small_and_loads_nothing() -> None:
    text = page([read_set(REAL)])
    assert len(text.encode()) < 6e6
    markup = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r'(src|href)="(?!#|data:)', markup)
    assert "@import" not in markup
    assert "url(" not in markup


def test_what_is_wrong_has_no_figure_anywhere_in_the_page() -> None:
    # That it has no samples is the record's own rule; memory it may have.
    bad = a_result("bad", status="wrong", reason="off", memory_bytes={"fwd_peak": 7})
    data = data_of(page([a_set([a_result("plain"), bad])]))
    rows_of_page = [dict(zip(data["row_fields"], row, strict=True)) for row in data["rows"]]
    (wrong,) = (row for row in rows_of_page if data["words"][row["status"]] == "wrong")
    assert wrong["fwd"] is wrong["bwd"] is wrong["peak"] is None
    assert [point["backend"] for point in data["noise"][0]] == ["plain"]


def test_the_page_has_all_samples_of_a_small_set_and_only_quantiles_of_a_large_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = with_families(frame(small_set().results))
    few = page_rows([table])
    monkeypatch.setattr(rows, "MOST_SAMPLES", 100)
    lots = page_rows([table])
    place = few["row_fields"].index("fwd")
    quantiles, count, samples = few["rows"][0][place]
    assert len(quantiles) == len(QUANTILES)
    assert count == sum(map(len, samples)) == 24
    assert quantiles[0] == min(ms for one in samples for ms in one)
    assert all(row[place] is None or len(row[place]) == 2 for row in lots["rows"])


def test_no_text_can_end_the_element_that_holds_the_data() -> None:
    text = json_text({"name": "</script><!--<script>&amp;"})
    assert not set("<>&") & set(text)
    assert json.loads(text) == {"name": "</script><!--<script>&amp;"}


def test_every_backend_stands_out_from_both_papers_and_has_a_look_of_its_own() -> None:
    looks = data_of(page([many(1_000)]))["looks"]
    assert len(looks) == 20
    for paper, background in PAPER.items():
        assert all(contrast(look[paper], background) >= 3 for look in looks.values())
    assert len({(look["light"], look["shape"], str(look["dash"])) for look in looks.values()}) == 20


def test_the_command_writes_one_page_and_no_other_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "report.html"
    done = CliRunner().invoke(app, ["report", str(REAL), "--html", str(target), "--no-charts"])
    assert done.exit_code == 0, done.output
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["report.html"]


def test_several_sets_without_a_page_are_refused_with_what_to_do() -> None:
    done = CliRunner().invoke(app, ["report", str(REAL), str(REAL)])
    assert done.exit_code == 2
    assert "--html" in done.stderr


def test_a_missing_library_is_named_with_how_to_have_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'attnbench\[page\]'"):
        page([small_set()])


def test_an_empty_result_set_gives_a_page_that_says_so() -> None:
    assert "Nothing was timed" in page([a_set([])])


def test_a_set_with_nothing_right_gives_a_page() -> None:
    wrong = a_result(status="wrong", reason="off", error_over_budget=2.0)
    assert "none is right" in page([a_set([wrong])])
