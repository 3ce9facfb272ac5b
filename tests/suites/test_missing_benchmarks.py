"""Does a compared run fail where a benchmark of its baseline vanished, is skipped or has no time any more?"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from attnbench_suites.missing import Asked, lost, selects, told

ROOT = Path(__file__).resolve().parents[2]
SUITE = """
[[cpu.grid]]
seq = {lengths}
heads = 1
head_dim = 8
mask = "full"
"""
CONTESTANT = """
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
    (folder / "mine.py").write_text(CONTESTANT.format(fault=fault))
    command = [sys.executable, "-m", "pytest", "suites/", "-p", "no:cacheprovider", "-p", "no:randomly"]
    command += [f"--suite={folder}/tiny.toml", f"--backend={folder}/mine.py:mine", "--device=cpu"]
    command += [f"--benchmark-storage=file://{folder}/saved", "--benchmark-max-time=0.02", *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return ran.returncode, ran.stdout + ran.stderr


def lost_lines(output: str) -> list[str]:
    found = output.split("benchmarks lost since the baseline")[1].splitlines()
    return [line for line in found if line.startswith("suites/")]


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
    said = [line.removeprefix("suites/test_given.py::test_given") for line in lost_lines(output)]
    assert [line[:4] for line in said] == ["[q4-", "[q8-", "[q16"]
    assert "is gone (" in said[0]
    assert "skipped now: " in said[1]
    assert "no eight any more (" in said[1]
    assert "failed now (" in said[2]


def test_a_skip_alone_fails_and_what_was_not_asked_for_is_not_lost(saved: Path) -> None:
    words = ["--benchmark-compare", "--benchmark-compare-fail=min:9000%", "-k", "not q4-"]
    code, output = compared(saved, [4, 8, 12, 16], REFUSES_8, *words)
    assert "2 passed, 1 skipped, 1 deselected" in output
    assert code == pytest.ExitCode.TESTS_FAILED
    assert len(lost_lines(output)) == 1
    assert "skipped now: " in lost_lines(output)[0]


def test_the_json_says_of_what_commit_and_on_what_machine(saved: Path) -> None:
    (path,) = saved.glob("saved/*/*.json")
    found = json.loads(path.read_text())
    assert found["commit_info"]["id"]
    assert found["machine_info"]["attnbench"]["libraries"]["torch"]
    assert {row["extra_info"]["backend"] for row in found["benchmarks"]} == {f"{saved}/mine.py:mine"}


NAME = "suites/test_quick.py::test_quick[q4-naive-fwd]"


def asked(*words: str, **more: Any) -> Asked:
    return Asked(words, more.pop("suites", frozenset({"quick"})), **more)


@pytest.mark.parametrize(
    ("run", "is_asked"),
    [
        (asked("suites"), True),
        (asked(""), True),
        (asked("suites/test_quick.py"), True),
        (asked("suites/test_quick.py::test_quick"), True),
        (asked(NAME), True),
        (asked("suites/test_core.py"), False),
        (asked("suites/test_quick.py::test_quick[q8-naive-fwd]"), False),
        (asked("suit"), False),
        (asked("suites", suites=frozenset({"core"})), False),
        (asked("suites/test_quick.py", suites=frozenset({"core"})), True),
        (asked("suites", backends=frozenset({"flex"})), False),
        (asked("suites", backends=frozenset({"flex", "naive"})), True),
        (asked("suites", keyword="naive and not bwd"), True),
        (asked("suites", keyword="flex"), False),
    ],
    ids=str,
)
def test_a_run_asks_for_what_its_words_cover(run: Asked, is_asked: bool) -> None:
    assert run.has(NAME, {"suite": "quick", "backend": "naive"}) is is_asked


def test_a_suite_of_ones_own_is_the_same_however_its_path_is_spelled() -> None:
    name = "suites/test_given.py::test_given[q4-naive-fwd]"
    info = {"suite": "a/../tiny.toml", "backend": "naive"}
    assert asked("suites", suites=frozenset({"tiny.toml"})).has(name, info)
    assert not asked("suites", suites=frozenset({"other.toml"})).has(name, info)
    assert not asked("suites/test_given.py", suites=frozenset({"other.toml"})).has(name, info)


def test_a_keyword_is_read_as_pytest_reads_it() -> None:
    assert selects("Quick and q4", NAME)
    assert selects("suites", NAME)
    assert not selects("q4 and not (naive or flex)", NAME)


def test_what_ran_without_a_time_is_lost_and_what_was_deselected_is_not() -> None:
    rows: dict[str, Any] = {"saved.json": {"a": {}, "b": {"extra_info": {}}, "c": {}, "d": {}, "e": {}}}
    outcomes = {"b": ("passed", ""), "c": ("skipped", "no GPU"), "d": ("failed", "")}
    found = list(lost(rows, {"a"}, outcomes, lambda name, info: name != "e"))
    assert list(told(found)) == [
        "b has no time now (saved.json has times of it)",
        "c skipped now: no GPU (saved.json has times of it)",
        "d failed now (saved.json has times of it)",
    ]
    assert [one.name for one in lost(rows, {"a"}, {}, lambda *_: True, {"b", "c", "d"})] == ["e"]
    assert list(lost({}, set(), outcomes, lambda *_: True)) == []
