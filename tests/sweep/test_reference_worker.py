"""A right answer that cannot be computed is not the backend's failure, and is tried once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import AttnbenchError
from attnbench.sweep.reference_worker import ReferenceWorker
from attnbench.sweep.step_errors import StepError


class Executor:
    """Fails in one step, and records the steps."""

    def __init__(self, fails_in: str) -> None:
        self.fails_in = fails_in
        self.steps: list[str] = []

    def start(self) -> None: ...

    def stop(self) -> None: ...

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        self.steps.append(step)
        if step == self.fails_in:
            raise StepError("oom", "asked for 9 GiB", ["its last output"], fatal=True)
        return {}


def a_worker(folder: Path, fails_in: str) -> tuple[ReferenceWorker, Executor]:
    executor = Executor(fails_in)
    return ReferenceWorker(executor, folder, timeout_s=1.0), executor


def test_a_reference_that_runs_out_of_memory_is_no_oom_of_the_backend(tmp_path: Path, a_case: Any) -> None:
    worker, _ = a_worker(tmp_path, "reference")
    with pytest.raises(StepError) as caught:
        worker.answer(a_case(), 0, "randn", "flash")
    assert caught.value.status == "error"
    assert "nothing to judge by: the float64 reference failed (oom: asked for 9 GiB)" in caught.value.reason
    assert not caught.value.fatal  # the backend's own worker is unharmed


def test_a_failed_reference_is_not_computed_again_for_the_next_backend(tmp_path: Path, a_case: Any) -> None:
    worker, executor = a_worker(tmp_path, "reference")
    for _ in range(3):
        with pytest.raises(StepError):
            worker.answer(a_case(), 0, "randn", "flash")
    assert executor.steps.count("reference") == 1
    with pytest.raises(StepError):
        worker.answer(a_case(), 1, "randn", "flash")  # another question
    assert executor.steps.count("reference") == 2


def test_a_machine_on_which_no_worker_runs_is_named(tmp_path: Path) -> None:
    worker, _ = a_worker(tmp_path, "environment")
    with pytest.raises(AttnbenchError, match=r"no worker can be used here: asked for 9 GiB.*doctor"):
        worker.ask("environment")
