"""One case is judged by the contract that it keeps, and its timing ends in bounded time, whatever else runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.problem import Case
from attnbench.sweep.bench import Bench
from attnbench.sweep.case_run import CaseRun, TimingSettings
from attnbench.sweep.result import Result
from tests.conformance.eager import in_float32, llama_eager


class StalledSlot:
    """A slot whose blocks take much longer than the warm-up's pace."""

    def call(self, step: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        time.sleep(0.03)
        return {"samples_ms": {"fwd": [30.0]}, "involuntary_switches": 9}


def rounds_done(case_seconds: float) -> CaseRun:
    blank = Result(case={}, case_id="x", backend="stalled", status="error")
    settings = TimingSettings(case_seconds=case_seconds)
    run = CaseRun(StalledSlot(), blank, settings, lambda contract: "")  # type: ignore[arg-type]
    run.rounds = 10
    for index in range(10):
        if index < run.rounds:
            run.time_round(position=0)
    return run


def test_a_stalled_machine_ends_the_rounds_early_and_says_so() -> None:
    run = rounds_done(case_seconds=0.02)
    assert len(run._rounds) == run.rounds == 3
    assert run._notes == ["timed for 3 of 10 rounds: the machine was too busy"]


def test_within_its_time_every_round_is_run() -> None:
    run = rounds_done(case_seconds=60.0)
    assert len(run._rounds) == 10
    assert run._notes == []


class BenchSlot:
    """A slot whose steps run in this process."""

    declared = None

    def __init__(self, function: Callable[..., Any]) -> None:
        self.bench = Bench("cpu")
        self.about = self.bench.open(function)

    def ready(self) -> dict[str, Any]:
        return self.about

    def call(self, step: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        return getattr(self.bench, step)(**fields)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("function", "contract"), [(llama_eager, "dense"), (in_float32, "flash")])
def test_a_function_is_timed_under_the_contract_that_allows_and_explains_its_error(
    tmp_path: Path, function: Callable[..., Any], contract: str
) -> None:
    case = Case(q_len=65, k_len=65, q_heads=2, head_dim=32, dtype="bf16")
    blank = Result.blank(case, backend="mine", distribution="negative_lse")
    slot = BenchSlot(function)

    def reference(contract: str) -> str:
        path = str(tmp_path / f"{contract}.npz")
        slot.bench.reference(blank.case, blank.seed, blank.distribution, contract, path)
        return path

    run = CaseRun(slot, blank, TimingSettings(), reference)  # type: ignore[arg-type]
    run.judge()
    run.leave_untimed("a test of the verdict")
    assert run.result is not None
    assert (run.result.status, run.result.contract) == ("ok", contract)
    words = "right under the dense contract; not under flash: scores are rounded to bf16"
    assert (words in run.result.notes) == (contract == "dense")
