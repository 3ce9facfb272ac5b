"""`attnbench check` exits 0 on a right backend, and 1 on a wrong one with a command that repeats the failure."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

RIGHT_WITHOUT_MASKS = """
def plain(q, k, v, *, mask, scores, scale):
    if scores or q.shape[1] != k.shape[1] or q.shape[2] != k.shape[2]:
        raise NotImplementedError("full attention with equal heads only")
    return ((q @ k.mT) * scale).softmax(-1) @ v
"""


@pytest.fixture
def mine(tmp_path: Path) -> str:
    """A function that ignores its mask: right where everything may be attended, wrong elsewhere."""
    (tmp_path / "mine.py").write_text(RIGHT_WITHOUT_MASKS)
    return f"{tmp_path / 'mine.py'}:plain"


def case(mask: str) -> str:
    fields = {"q_len": 16, "k_len": 16, "q_heads": 2, "head_dim": 8, "dtype": "fp32", "mask": mask}
    return json.dumps(fields)


def test_what_is_right_exits_0(mine: str, attnbench: Any) -> None:
    done = attnbench("check", mine, "--case", case("full"))
    assert done.exit_code == 0, done.output
    assert "1 checks passed, 0 failed" in done.stdout
    assert done.stderr.startswith("device cpu")


def test_what_is_wrong_exits_1_and_the_printed_command_shows_it_again(mine: str, attnbench: Any) -> None:
    done = attnbench("check", mine, "--case", case("causal"))
    assert done.exit_code == 1
    again = next(line for line in done.stdout.splitlines() if "attnbench check" in line)
    words = shlex.split(again[again.index("attnbench check") :])
    assert attnbench(*words[1:]).exit_code == 1


def test_a_picture_is_offered_of_wrong_values_and_not_of_how_they_came_about(
    mine: str, attnbench: Any
) -> None:
    assert "to see where: attnbench show" in attnbench("check", mine, "--case", case("causal")).stdout
    done = attnbench("check", mine, "--case", case("causal"), "--only", "protocol")
    assert "protocol: the first call is wrong" in done.stdout
    assert "to see where" not in done.stdout


def test_json_has_the_failure_with_its_case_and_place(mine: str, attnbench: Any) -> None:
    done = attnbench("check", mine, "--case", case("causal"), "--json")
    report = json.loads(done.stdout)
    assert report["ok"] is False
    assert report["failures"][0]["case"]["mask"] == "causal"
    assert len(report["failures"][0]["worst"]) == 4


def test_what_refuses_everything_is_not_called_right(mine: str, attnbench: Any) -> None:
    fields = json.loads(case("full")) | {"q_heads": 4, "kv_heads": 2}
    done = attnbench("check", mine, "--case", json.dumps(fields))
    assert done.exit_code == 1
    assert "full attention with equal heads only" in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("--level", "hardest"),
        ("--case", "{not json"),
        ("--case", "[1]"),
        ("--case", '{"q_len": 1}'),
        ("--dtype", "fp8"),
        ("--direction", "sideways"),
        ("--contract", "loose"),
        ("--only", "speed"),
    ],
    ids=" ".join,
)
def test_a_request_that_makes_no_sense_exits_2(mine: str, attnbench: Any, arguments: tuple[str, ...]) -> None:
    done = attnbench("check", mine, *arguments)
    assert done.exit_code == 2, done.output
    assert done.stderr.splitlines()[-1].startswith("attnbench: ")


def test_a_backend_that_is_not_installed_exits_3(attnbench: Any) -> None:
    listed = json.loads(attnbench("list", "--json").stdout)
    missing = [one["name"] for one in listed if not one["available"]]
    if not missing:
        pytest.skip("every backend is installed here")
    done = attnbench("check", missing[0])
    assert done.exit_code == 3
    assert missing[0] in done.stderr


def test_a_page_of_the_self_test_that_cannot_be_written_is_refused_before_anything_runs(
    tmp_path: Path, attnbench: Any
) -> None:
    done = attnbench("selftest", "--write", tmp_path)
    assert done.exit_code == 2, done.output
    assert "is a folder" in done.stderr
