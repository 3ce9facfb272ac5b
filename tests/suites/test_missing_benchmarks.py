"""A compared run fails if a benchmark of its baseline vanished, is skipped or has no time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attnbench_suites.missing import Selection, missing_benchmarks, selects

pytestmark = pytest.mark.benchmarks

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
[[cpu.grid]]
seq = {lengths}
heads = 1
head_dim = 8
mask = "full"
"""
PLUG_IN = """
import torch

def mine(q, k, v, *, mask, scores, scale):
    {fault}
    allowed = mask.materialize(batch=1, heads=1, q_len=q.shape[2], k_len=k.shape[2])
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)
"""
REFUSES_8 = 'if q.shape[2] == 8: raise NotImplementedError("no eight any more")'
WRONG_FROM_16 = "v = 2 * v if q.shape[2] >= 16 else v"


def compared(folder: Path, lengths: list[int], fault: str, *words: str) -> tuple[int, str]:
    """`pytest suites/` on one function and these lengths, its storage in `folder`: exit code, output."""
    (folder / "tiny.toml").write_text(SUITE.format(lengths=lengths))
    (folder / "mine.py").write_text(PLUG_IN.format(fault=fault))
    command = [sys.executable, "-m", "pytest", "suites/", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += [f"--suite={folder}/tiny.toml", f"--backend={folder}/mine.py:mine", "--device=cpu"]
    command += [f"--benchmark-storage=file://{folder}/saved", "--benchmark-max-time=0.02", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def missing_lines(output: str) -> list[str]:
    lines = output.split("benchmarks missing since the baseline")[1].splitlines()
    return [line for line in lines if line.startswith("suites/")]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a saved run of four lengths."""
    folder = tmp_path_factory.mktemp("compared")
    code, output = compared(folder, [4, 8, 12, 16], "pass", "--benchmark-autosave")
    assert code == 0, output
    return folder


def test_what_vanished_was_skipped_or_failed_fails_the_comparison_and_is_named(saved: Path) -> None:
    code, output = compared(saved, [8, 12, 16], f"{REFUSES_8}\n    {WRONG_FROM_16}", "--benchmark-compare")
    assert code == pytest.ExitCode.TESTS_FAILED
    lines = [line.removeprefix("suites/test_given.py::test_given") for line in missing_lines(output)]
    assert [line[:4] for line in lines] == ["[q4-", "[q8-", "[q16"]
    assert "is gone (" in lines[0]
    assert "skipped now: " in lines[1]
    assert "no eight any more (" in lines[1]
    assert "failed now (" in lines[2]


def test_a_skip_alone_fails_and_what_was_not_selected_is_not_missing(saved: Path) -> None:
    words = ["--benchmark-compare", "--benchmark-compare-fail=min:9000%", "-k", "not q4-"]
    code, output = compared(saved, [4, 8, 12, 16], REFUSES_8, *words)
    assert "2 passed, 1 skipped, 1 deselected" in output
    assert code == pytest.ExitCode.TESTS_FAILED
    assert len(missing_lines(output)) == 1
    assert "skipped now: " in missing_lines(output)[0]


def test_the_json_names_commit_and_machine(saved: Path) -> None:
    (path,) = saved.glob("saved/*/*.json")
    report = json.loads(path.read_text())
    assert report["commit_info"]["id"]
    assert report["machine_info"]["attnbench"]["libraries"]["torch"]
    assert {row["extra_info"]["backend"] for row in report["benchmarks"]} == {f"{saved}/mine.py:mine"}


NAME = "suites/test_quick.py::test_quick[q4-naive-fwd]"


def selecting(*words: str, **more: Any) -> Selection:
    return Selection(words, more.pop("suites", frozenset({"quick"})), **more)


@pytest.mark.parametrize(
    ("run", "is_included"),
    [
        (selecting("suites"), True),
        (selecting(""), True),
        (selecting("suites/test_quick.py"), True),
        (selecting("suites/test_quick.py::test_quick"), True),
        (selecting(NAME), True),
        (selecting("suites/test_core.py"), False),
        (selecting("suites/test_quick.py::test_quick[q8-naive-fwd]"), False),
        (selecting("suit"), False),
        (selecting("suites", suites=frozenset({"core"})), False),
        (selecting("suites/test_quick.py", suites=frozenset({"core"})), True),
        (selecting("suites", backends=frozenset({"flex"})), False),
        (selecting("suites", backends=frozenset({"flex", "naive"})), True),
        (selecting("suites", keyword="naive and not bwd"), True),
        (selecting("suites", keyword="flex"), False),
    ],
    ids=str,
)
def test_a_run_includes_what_its_words_cover(run: Selection, is_included: bool) -> None:
    assert run.includes(NAME, {"suite": "quick", "backend": "naive"}) is is_included


def test_a_suite_file_is_the_same_however_its_path_is_spelled() -> None:
    name = "suites/test_given.py::test_given[q4-naive-fwd]"
    info = {"suite": "a/../tiny.toml", "backend": "naive"}
    assert selecting("suites", suites=frozenset({"tiny.toml"})).includes(name, info)
    assert not selecting("suites", suites=frozenset({"other.toml"})).includes(name, info)
    assert not selecting("suites/test_given.py", suites=frozenset({"other.toml"})).includes(name, info)


def test_a_keyword_selects_what_pytest_selects() -> None:
    assert selects("Quick and q4", NAME)
    assert selects("suites", NAME)
    assert not selects("q4 and not (naive or flex)", NAME)


def test_what_ran_without_a_time_is_missing_and_what_was_deselected_is_not() -> None:
    rows: dict[str, Any] = {"saved.json": {"a": {}, "b": {"extra_info": {}}, "c": {}, "d": {}, "e": {}}}
    outcomes = {"b": ("passed", ""), "c": ("skipped", "no GPU"), "d": ("failed", "")}
    missing = missing_benchmarks(rows, {"a"}, outcomes, lambda name, info: name != "e")
    assert [str(one) for one in missing] == [
        "b has no time now (saved.json has times of it)",
        "c skipped now: no GPU (saved.json has times of it)",
        "d failed now (saved.json has times of it)",
    ]
    rest = missing_benchmarks(rows, {"a"}, {}, lambda *_: True, {"b", "c", "d"})
    assert [one.name for one in rest] == ["e"]
    assert list(missing_benchmarks({}, set(), outcomes, lambda *_: True)) == []
