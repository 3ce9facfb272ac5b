"""Timing one case ends in bounded time, whatever else the machine does."""

from __future__ import annotations

import time
from typing import Any

from attnbench.sweep.case_run import CaseRun, TimingSettings
from attnbench.sweep.result import Result


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
