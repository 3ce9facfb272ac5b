"""report, compare and gate print and write what the results hold, and exit as promised."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from attnbench.problem import Causal


@pytest.fixture
def base(stored: Any, a_case: Any, a_result: Any) -> Path:
    return stored(
        "base", a_result(a_case()), a_result(a_case(mask=Causal())), a_result(a_case(), "flex", 2.0)
    )


@pytest.mark.parametrize(
    ("head_ms", "changes", "code"),
    [
        (1.0, {}, 0),
        (1.5, {}, 1),
        (1.0, {"status": "wrong", "reason": "out is off"}, 1),
        (1.0, {"status": "crashed", "reason": "signal 11"}, 1),
        (1.0, {"memory_bytes": {"fwd_peak": 1 << 24}}, 1),
        (1.0, {"environment": "there"}, 3),
    ],
    ids=["same", "slower", "wrong", "crashed", "bigger", "another machine"],
)
def test_the_exit_code_of_the_gate_is_its_answer(
    base: Path,
    stored: Any,
    a_case: Any,
    a_result: Any,
    attnbench: Any,
    head_ms: float,
    changes: Any,
    code: int,
) -> None:
    others = a_result(a_case(mask=Causal())), a_result(a_case(), "flex", 2.0)
    head = stored("head", a_result(a_case(), "naive", head_ms, **changes), *others)
    done = attnbench("gate", "--base", base, "--head", head)
    assert done.exit_code == code, done.output
    if code == 1:
        assert f"naive {a_case().id}" in done.stdout
        assert "flex" not in done.stdout.splitlines()[0]
    if code == 3:
        assert "threads: 2 and 64" in done.stderr
        assert attnbench("gate", "--base", base, "--head", head, "--allow-unlike").exit_code == 0


def test_an_identical_copy_passes_even_strictly(base: Path, attnbench: Any) -> None:
    done = attnbench("gate", "--base", base, "--head", base, "--strict")
    assert done.exit_code == 0, done.output
    assert done.stdout.startswith("not worse: 3 same")


def test_a_missing_case_fails_the_gate(
    base: Path, stored: Any, a_case: Any, a_result: Any, attnbench: Any
) -> None:
    head = stored("head", a_result(a_case()), a_result(a_case(), "flex", 2.0))
    done = attnbench("gate", "--base", base, "--head", head, "--json")
    assert done.exit_code == 1
    verdict = json.loads(done.stdout)
    assert verdict["exit_code"] == 1
    assert [f["case"] for f in verdict["findings"] if f["fails"]] == [a_case(mask=Causal()).id]


def test_sets_without_a_common_case_exit_3(
    base: Path, stored: Any, a_case: Any, a_result: Any, attnbench: Any
) -> None:
    other = stored("other", a_result(a_case(q_len=32, k_len=32)))
    assert attnbench("gate", "--base", base, "--head", other).exit_code == 3
    assert attnbench("compare", base, other).exit_code == 3


def test_an_inconclusive_gate_warns_and_fails_when_strict(
    stored: Any, a_case: Any, a_result: Any, attnbench: Any
) -> None:
    base = stored("base", a_result(a_case(), samples_ms={"fwd": [[1.0, 1.01]]}))
    head = stored("head", a_result(a_case(), samples_ms={"fwd": [[1.2, 1.21]]}))
    done = attnbench("gate", "--base", base, "--head", head)
    assert done.exit_code == 0
    assert "warning" in done.stdout
    strict = attnbench("gate", "--base", base, "--head", head, "--strict")
    assert strict.exit_code == 1
    assert strict.stdout.splitlines()[-1].startswith("not shown to be the same: 1 inconclusive")


@pytest.mark.parametrize("option", ["--summary", "--junit"])
@pytest.mark.parametrize(
    ("file", "message"), [("base", "is a folder"), ("base/results.jsonl/v.md", "cannot be written")]
)
def test_a_verdict_that_cannot_be_written_is_refused_before_anything_is_judged(
    base: Path, tmp_path: Path, attnbench: Any, option: str, file: str, message: str
) -> None:
    done = attnbench("gate", "--base", base, "--head", base, option, tmp_path / file)
    assert done.exit_code == 2, done.output
    assert message in done.stderr
    assert done.stdout == ""


def test_options_that_do_not_apply_to_result_folders_are_named(base: Path, attnbench: Any) -> None:
    done = attnbench("gate", "--base", base, "--head", base, "--effect", "0.2", "--all", "--margin", "0.2")
    assert done.exit_code == 0, done.output
    assert "ignored: --all, --effect (" in done.stderr
    assert "ignored" not in attnbench("gate", "--base", base, "--head", base, "--margin", "0.2").stderr


def test_a_result_folder_as_head_of_a_revision_is_refused(base: Path, attnbench: Any) -> None:
    done = attnbench("gate", "--base", "main", "--head", base)
    assert done.exit_code == 2
    assert "--base must be a result folder too, not 'main'" in done.stderr


def test_compare_prints_the_ratio_and_the_interval(
    base: Path, stored: Any, a_case: Any, a_result: Any, attnbench: Any
) -> None:
    head = stored("head", a_result(a_case(), "naive", 1.5), a_result(a_case(), "flex", 2.0))
    shown = attnbench("compare", base, head).stdout
    assert "1.500x" in shown
    assert "only in base: 1 result" in shown
    compared = json.loads(attnbench("compare", base, head, "--json").stdout)
    assert compared["changes"][0]["backend"] == "naive"
    assert compared["changes"][0]["ratio"]["point"] == pytest.approx(1.5)
    assert [one["case"] for one in compared["only_base"]] == [a_case(mask=Causal()).id]


def test_report_prints_a_table_and_writes_every_file(base: Path, attnbench: Any) -> None:
    done = attnbench("report", base)
    assert done.exit_code == 0, done.output
    assert "naive" in done.stdout
    assert "A CPU, 2 cores" in done.stdout.splitlines()[0]
    written = {path.name for path in (base / "report").iterdir()}
    assert {
        "results.csv",
        "results.parquet",
        "report.md",
        "support.png",
        "error.png",
        "time-cases.png",
    } <= written


def test_report_without_charts_draws_none(base: Path, tmp_path: Path, attnbench: Any) -> None:
    assert attnbench("report", base, "--out", tmp_path / "r", "--no-charts").exit_code == 0
    assert not list((tmp_path / "r").glob("*.png"))


def test_report_as_json_has_null_for_what_is_missing(base: Path, attnbench: Any) -> None:
    rows = json.loads(attnbench("report", base, "--json").stdout)
    assert len(rows) == 3
    assert rows[0]["fwd_median_ms"] == pytest.approx(1.005)
    assert rows[0]["bwd_median_ms"] is None
    assert not (base / "report").exists()


def test_a_corrupt_file_is_named_with_its_line(base: Path, attnbench: Any) -> None:
    with (base / "results.jsonl").open("ab") as file:
        file.write(b"{not json\n")
    done = attnbench("report", base)
    assert done.exit_code == 2
    assert "line 4" in done.stderr
