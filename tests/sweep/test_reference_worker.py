"""Whose fault is it when the right answer of a case cannot be worked out? Not the backend's, and it is asked once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import AttnbenchError
from attnbench.sweep.reference_worker import Oracle
from attnbench.sweep.step_errors import Fault


class Executor:
    """Fails in one step, and writes down what it is asked."""

    def __init__(self, fails_in: str) -> None:
        self.fails_in = fails_in
        self.asked: list[str] = []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        self.asked.append(step)
        if step == self.fails_in:
            raise Fault("oom", "asked for 9 GiB", ["its last words"], fatal=True)
        return {}


def an_oracle(folder: Path, fails_in: str) -> tuple[Oracle, Executor]:
    executor = Executor(fails_in)
    return Oracle(executor, folder, timeout_s=1.0, memory_limit_bytes=None), executor


def test_a_reference_that_runs_out_of_memory_is_no_oom_of_the_backend(tmp_path: Path, a_case: Any) -> None:
    oracle, _ = an_oracle(tmp_path, "reference")
    with pytest.raises(Fault) as found:
        oracle.answer(a_case(), 0, "randn", "flash")
    assert found.value.status == "error"
    assert "nothing to judge by: the float64 reference failed (oom: asked for 9 GiB)" in found.value.reason
    assert not found.value.fatal  # the worker that holds the backend is as good as before


def test_what_failed_is_not_worked_out_again_for_the_next_backend(tmp_path: Path, a_case: Any) -> None:
    oracle, executor = an_oracle(tmp_path, "reference")
    for _ in range(3):
        with pytest.raises(Fault):
            oracle.answer(a_case(), 0, "randn", "flash")
    assert executor.asked.count("reference") == 1
    with pytest.raises(Fault):
        oracle.answer(a_case(), 1, "randn", "flash")  # another question
    assert executor.asked.count("reference") == 2


def test_a_machine_on_which_no_worker_runs_is_said(tmp_path: Path) -> None:
    oracle, _ = an_oracle(tmp_path, "environment")
    with pytest.raises(AttnbenchError, match=r"no worker can be used here: asked for 9 GiB.*doctor"):
        oracle.ask("environment")
