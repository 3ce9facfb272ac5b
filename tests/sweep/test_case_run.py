"""Does timing one case end in bounded time, whatever the machine is doing?"""

from __future__ import annotations

import time
from typing import Any

from attnbench.sweep.case_run import Attempt, Protocol
from attnbench.sweep.result import Result


class StalledLane:
    """A lane whose blocks take much longer than the pace that was found beforehand."""

    def call(self, step: str, timeout_s: float, **fields: Any) -> dict[str, Any]:
        time.sleep(0.03)
        return {"samples_ms": {"fwd": [30.0]}, "involuntary_switches": 9}


def rounds_done(case_seconds: float) -> Attempt:
    blank = Result(case={}, case_id="x", backend="stalled", status="error")
    attempt = Attempt(StalledLane(), blank, Protocol(case_seconds=case_seconds), lambda contract: "")  # type: ignore[arg-type]
    attempt.rounds = 10
    for index in range(10):
        if index < attempt.rounds:
            attempt.time_round(position=0)
    return attempt


def test_a_stalled_machine_ends_the_rounds_early_and_says_so() -> None:
    attempt = rounds_done(case_seconds=0.02)
    assert len(attempt._rounds) == attempt.rounds == 3
    assert attempt._notes == ["timed for 3 of 10 rounds: the machine was too busy"]


def test_within_its_time_every_round_is_done() -> None:
    attempt = rounds_done(case_seconds=60.0)
    assert len(attempt._rounds) == 10
    assert attempt._notes == []
