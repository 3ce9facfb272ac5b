"""Arms of one backend are timed alike: in fresh processes, at one pace, each from its own folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import AttnbenchError
from attnbench.gate.arms import Arm, ArmRunner, share_pace
from attnbench.measure import FakeClock, Pace
from attnbench.measure.clocks import CpuClock, CudaClock, ProcessClock
from attnbench.measure.timing import slowed
from attnbench.problem import Case
from attnbench.sweep import run_sweep
from attnbench.sweep.case_run import CaseRun, TimingSettings, join_results
from attnbench.sweep.result import Result
from attnbench.sweep.suite import Planned

FINE = """
import os
import torch

def backend(q, k, v, *, mask, scores, scale):
    {check}
    return torch.einsum("bhqk,bhkd->bhqd", (torch.einsum("bhqd,bhkd->bhqk", q, k) * scale).softmax(-1), v)
"""
PLAN = [Planned(Case(q_len=32, k_len=32, q_heads=2, head_dim=16, dtype="fp32", direction="fwd_bwd"))]


def a_folder(folder: Path, check: str = "pass") -> Path:
    folder.mkdir()
    (folder / "fine.py").write_text(FINE.format(check=check))
    return folder


def test_each_arm_is_loaded_from_its_folder_and_timed_in_every_round(tmp_path: Path) -> None:
    folders = [
        a_folder(tmp_path / "base"),
        a_folder(tmp_path / "head", "assert int(os.environ['OMP_NUM_THREADS']) == 1"),
    ]
    arms = [Arm(name, "fine", folder) for name, folder in zip(("base", "head"), folders, strict=True)]
    with ArmRunner("cpu", threads=1, rounds=4) as runner:
        ran = list(runner.run(PLAN, arms, group=3, seed=1))
    assert [(r.arm, r.group, r.result.status) for r in ran] == [("base", 3, "ok"), ("head", 3, "ok")]
    one, two = (r.result for r in ran)
    assert {which: len(rounds) for which, rounds in one.samples_ms.items()} == {"fwd": 4, "bwd": 4}
    assert one.calls_per_sample == two.calls_per_sample
    assert [len(block) for block in one.samples_ms["fwd"]] == [len(block) for block in two.samples_ms["fwd"]]
    assert one.clock == "process_time_ns"
    assert one.seed == 1


def test_what_one_arm_cannot_answer_is_timed_in_none(tmp_path: Path) -> None:
    wrong = a_folder(tmp_path / "head", "q = 1.1 * q")
    with ArmRunner("cpu", threads=1, rounds=2) as runner:
        ran = list(
            runner.run(
                PLAN, [Arm("base", "fine", a_folder(tmp_path / "base")), Arm("head", "fine", wrong)], 0, 0
            )
        )
    assert [r.result.status for r in ran] == ["ok", "wrong"]
    assert not any(r.result.samples_ms for r in ran)


def test_all_arms_keep_the_slowest_ones_pace() -> None:
    attempts = []
    for call_ms, calls in ((0.4, 2), (0.6, 1)):
        blank = Result(case={}, case_id="x", backend="x", status="error")
        attempt = CaseRun(None, blank, TimingSettings(), lambda contract: "")  # type: ignore[arg-type]
        attempt.use_paces({"fwd": Pace(call_ms, calls, 3, True)})
        attempts.append(attempt)
    share_pace(attempts)
    assert {attempt.paces["fwd"].calls_per_sample for attempt in attempts} == {1}
    assert attempts[0].rounds == attempts[1].rounds


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5])
def test_a_slowed_call_takes_its_share_longer(share: float) -> None:
    clock = FakeClock()
    waits = 0

    class Ticking(FakeClock):
        def now_ns(self) -> int:
            nonlocal waits
            waits += 1
            clock.elapsed_ns += 1  # looking costs a nanosecond, or the wait would never end
            return clock.elapsed_ns

    slower = slowed(lambda: clock.advance(2.0), share, Ticking())
    slower()
    assert clock.elapsed_ns / 1e6 == pytest.approx(2.0 * (1 + share), rel=1e-5)


def test_a_kernel_on_a_gpu_is_not_slowed_by_a_wait_of_the_host() -> None:
    with pytest.raises(AttnbenchError, match="slows no kernel"):
        slowed(lambda: None, 0.05, CudaClock(None, lambda: None))


def test_sleeping_is_no_processor_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's clocks are scripted: 3 ms of work and 20 ms of sleep passed, of which work counts."""
    clocks = {"process_time_ns": iter([0, 3_000_000]), "perf_counter_ns": iter([0, 23_000_000])}
    for name, values in clocks.items():
        monkeypatch.setattr(time, name, lambda values=values: next(values))
    assert ProcessClock().time(lambda: None, 1).samples_ms == [3.0]
    assert CpuClock().time(lambda: None, 1).samples_ms == [23.0]


def test_rounds_of_fresh_processes_are_told_apart() -> None:
    def result(**changes: Any) -> Result:
        fields: dict[str, Any] = {"case": {}, "case_id": "x", "backend": "x", "status": "ok"}
        return Result(**(fields | {"samples_ms": {"fwd": [[1.0]]}, "rounds": [{"at_s": 0.1}]} | changes))

    both = join_results(result(), result(samples_ms={"fwd": [[2.0]]}), 1)
    assert both.samples_ms == {"fwd": [[1.0], [2.0]]}
    assert [one.get("process", 0) for one in both.rounds] == [0, 1]
    failed = join_results(result(), result(status="wrong", samples_ms={}, reason="at last"), 1)
    assert (failed.status, failed.reason) == ("wrong", "at last")


def test_a_sweep_starts_its_workers_as_often_as_asked(tmp_path: Path) -> None:
    log = tmp_path / "pids"
    folder = a_folder(tmp_path / "backends", f"open({str(log)!r}, 'a').write(f'{{os.getpid()}} ')")
    options: dict[str, Any] = {"device": "cpu", "rounds": 2, "block_ms": 1.0}
    (result,) = run_sweep(PLAN, ["fine"], folder=folder, processes=3, **options)
    assert result.status == "ok", result.reason
    assert [one.get("process", 0) for one in result.rounds] == [0, 0, 1, 1, 2, 2]
    assert len(result.samples_ms["bwd"]) == 6
    assert len(set(log.read_text().split())) == 3
