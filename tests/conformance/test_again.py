"""The printed command runs the failing check again, from any folder."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from attnbench.backend import FunctionBackend, resolve
from attnbench.conformance.again import VARIABLES, Again, address_of
from attnbench.problem import Case
from tests.conformance.functions import Careful, right, with_fault

CASE = Case(q_len=2, k_len=2, q_heads=1, head_dim=16, dtype="fp32")


def test_a_file_is_named_by_its_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def f(q, k, v, *, mask, scores, scale):\n    return q\n")
    monkeypatch.chdir(tmp_path)
    assert address_of(resolve("mine.py:f")) == f"{tmp_path}/mine.py:f"


def test_what_a_command_cannot_reach_is_called_from_python() -> None:
    assert address_of(resolve("naive")) == "naive"
    assert address_of(FunctionBackend(right, "right")).endswith("tests/conformance/functions.py:right")
    for backend in (FunctionBackend(with_fault(), "faulty"), Careful()):
        assert address_of(backend) == ""
    command = Again("", "oracle", 0, name="faulty").on(CASE, "large")
    assert command.startswith("attnbench.check(faulty, case={'q_len': 2")
    compile(command, "", "eval")


def test_variables_that_change_the_answer_and_relative_folders_are_part_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*VARIABLES, "PYTHONPATH"):
        monkeypatch.delenv(name, raising=False)
    again = Again("/a/mine.py:f", "oracle", 0, device="cpu")
    assert shlex.split(again.on(CASE, "randn"))[:3] == ["attnbench", "check", "/a/mine.py:f"]
    assert again.on(CASE, "randn").endswith("--device cpu --seed 0")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", "lib")
    assert again.on(CASE, "randn").startswith(
        f"TRITON_INTERPRET=1 PYTHONPATH={os.getcwd()}/lib attnbench check"
    )
