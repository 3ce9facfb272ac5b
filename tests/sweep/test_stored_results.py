"""A result folder of schema 1, as written in November 2026, loads, reports, compares and gates unchanged."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import attnbench
from attnbench.cli.app import app
from attnbench.errors import StoreError
from attnbench.problem import Case
from attnbench.sweep.result import SCHEMA, Result
from attnbench.sweep.store import Store, read_environments, read_results

STORED = Path(__file__).with_name("stored_schema_1")


def run(*words: Any) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.stdout


def test_every_row_loads_with_its_samples_and_the_id_that_its_case_has_today() -> None:
    results = read_results(STORED)
    assert Counter(r.status for r in results) == {"ok": 5, "refused": 2, "unavailable": 2}
    assert all(bool(r.samples_ms) == (r.status == "ok") for r in results)
    assert all(Case.from_json(r.case).id == r.case_id for r in results)
    assert all(r.other_clocks_ms == {} for r in results)  # a field that is younger than the rows
    assert {r.environment for r in results} == set(read_environments(STORED))


def test_a_stored_row_is_written_back_with_every_field_that_it_has() -> None:
    lines = (STORED / "results.jsonl").read_text().splitlines()
    for record in map(json.loads, lines):
        written = Result.from_json(record).to_json()
        assert {name: written[name] for name in record} == record


def test_a_stored_folder_becomes_a_frame_and_a_report(tmp_path: Path) -> None:
    frame = attnbench.load(STORED)
    assert set(frame.backend) == {"naive", "sdpa_flash", "flash_attn", "sdpa_cudnn"}
    printed = run("report", STORED, "--out", tmp_path / "report", "--html", tmp_path / "page.html")
    assert "sdpa_flash" in printed
    assert "naive" in (tmp_path / "page.html").read_text()


def test_a_stored_folder_is_compared_and_gated() -> None:
    changes = json.loads(run("compare", STORED, STORED, "--json"))["changes"]
    assert {change["backend"] for change in changes} == {"naive", "sdpa_flash"}
    assert all(change["ratio"]["point"] == 1.0 for change in changes)
    assert run("gate", "--base", STORED, "--head", STORED, "--strict").startswith("not worse")


def test_a_record_of_a_later_schema_is_refused_with_what_to_do(tmp_path: Path) -> None:
    record = json.loads((STORED / "results.jsonl").read_text().splitlines()[0])
    (tmp_path / "results.jsonl").write_text(json.dumps(record | {"schema": SCHEMA + 1}) + "\n")
    with pytest.raises(StoreError, match=rf"line 1, .*schema {SCHEMA + 1}.*up to {SCHEMA}: update"):
        Store(tmp_path).read()


def test_a_blank_result_holds_what_follows_from_the_case(a_case: Any) -> None:
    case = a_case(direction="fwd_bwd")
    blank = Result.blank(case, backend="naive", group="tiny", seed=3)
    assert (blank.case_id, blank.backend, blank.group, blank.seed) == (case.id, "naive", "tiny", 3)
    assert blank.status == "error"
    assert blank.flops == {"fwd": case.flops("fwd"), "bwd": case.flops("bwd")}
    assert set(blank.least_bytes) == {"fwd", "bwd"}
    assert (blank.pairs, blank.least_peak_bytes) == (case.pairs, case.least_peak_bytes)
    assert set(Result.blank(a_case()).flops) == {"fwd"}
