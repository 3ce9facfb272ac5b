"""The sweep judges, times, stores and resumes; mostly with functions, which run in this process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.backend import Capabilities, FunctionBackend
from attnbench.errors import AttnbenchError, StoreError, UnknownBackend
from attnbench.measure import FakeClock
from attnbench.problem import Causal, make_inputs
from attnbench.sweep import (
    CaseStarted,
    Finished,
    Judged,
    Result,
    Store,
    SweepFinished,
    SweepStarted,
    run_sweep,
)
from attnbench.sweep.bench import Bench
from attnbench.sweep.case_run import CaseRun, TimingSettings
from attnbench.sweep.events import Doing
from attnbench.sweep.store import read_results

KeysOf = Callable[[Sequence[Any]], list[tuple[Any, ...]]]
Plans = Callable[..., list[Any]]
QUICK: dict[str, Any] = {"device": "cpu", "rounds": 2, "block_ms": 1.0}


def right(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    allowed = mask.materialize(batch=q.shape[0], heads=q.shape[1], q_len=q.shape[2], k_len=k.shape[2])
    return ((q @ k.transpose(-1, -2)) * scale).masked_fill(~allowed, -torch.inf).softmax(-1) @ v


def also_right(*arguments: Any, **options: Any) -> Tensor:
    return right(*arguments, **options)


def wrong(*arguments: Any, **options: Any) -> Tensor:
    return right(*arguments, **options) + 0.1


class WrongLater:
    """Right for the first calls, then wrong: a check before the timed loop alone would miss it."""

    __name__ = "wrong_later"

    def __init__(self, calls: int) -> None:
        self.calls = calls

    def __call__(self, *arguments: Any, **options: Any) -> Tensor:
        self.calls -= 1
        return right(*arguments, **options) * (1.0 if self.calls >= 0 else 1.5)


def test_both_directions_of_every_case_are_timed_in_rounds(plans: Plans) -> None:
    (result,) = run_sweep(plans(16, direction="fwd_bwd", mask=Causal()), [right], **QUICK)
    assert result.status == "ok"
    assert {d: len(rounds) for d, rounds in result.samples_ms.items()} == {"fwd": 2, "bwd": 2}
    assert len(result.rounds) == 2
    assert set(result.memory_bytes) >= {"fwd_peak", "saved", "bwd_peak"}
    assert set(result.errors) >= {"out", "dq", "dk", "dv"}
    assert "first_call" in result.prepare_ms
    assert result.pairs == 2 * 16 * 17 // 2


def test_a_backend_that_is_right_only_until_it_is_timed_is_wrong(plans: Plans) -> None:
    (result,) = run_sweep(plans(16), [WrongLater(3)], **QUICK)  # judging and memory take two
    assert result.status == "wrong"
    assert "after the timed loop" in result.reason
    assert result.samples_ms == {}


def test_a_wrong_backend_is_called_no_more_once_it_is_judged(plans: Plans) -> None:
    calls = []

    def counted(*arguments: Any, **options: Any) -> Tensor:
        calls.append(1)
        return wrong(*arguments, **options)

    (result,) = run_sweep(plans(16), [counted], **QUICK)
    assert result.status == "wrong"
    assert len(calls) == 1


def test_an_interpreter_is_judged_and_not_timed(plans: Plans) -> None:
    interpreter = FunctionBackend(right, "interpreter", Capabilities(timed=False))
    (result,) = run_sweep(plans(16), [interpreter], **QUICK)
    assert result.status == "ok"
    assert result.samples_ms == {}
    assert result.error_over_budget is not None
    assert any("not timed" in note for note in result.notes)


def test_an_interpreter_runs_once_for_its_verdict_and_its_memory(plans: Plans) -> None:
    calls: list[int] = []

    def counted(q: Tensor, *arguments: Any, **options: Any) -> Tensor:
        calls.append(q.shape[2])
        return right(q, *arguments, **options)

    interpreter = FunctionBackend(counted, "interpreter", Capabilities(timed=False))
    results = run_sweep(plans(16, 24, 32, direction="fwd_bwd"), [interpreter], **QUICK)
    assert calls == [16, 16, 24, 32]  # the first run of a process also loads libraries
    assert [set(result.errors) >= {"out", "dq", "dk", "dv"} for result in results] == [True] * 3
    peaks = [result.memory_bytes["bwd_peak"] / result.least_peak_bytes for result in results]  # type: ignore[operator]
    assert all(1 <= peak < 20 for peak in peaks), peaks


def test_rounds_interleave_the_backends_in_changing_order(plans: Plans) -> None:
    rounds = 12
    backends = [FunctionBackend(right, name) for name in "abc"]
    results = run_sweep(plans(16), backends, device="cpu", rounds=rounds, block_ms=1.0)
    by_round = list(zip(*([r["position"] for r in result.rounds] for result in results), strict=True))
    assert len(by_round) == rounds
    assert all(sorted(positions) == [0, 1, 2] for positions in by_round)
    assert len(set(by_round)) > 1  # a fixed order comes out of this once in 6 ** 11 runs
    starts = [[result.rounds[i]["at_s"] for result in results] for i in range(rounds)]
    assert all(max(this) <= min(next_) for this, next_ in pairwise(starts)), (
        "a round began before the last was done"
    )


def test_each_case_runs_once_however_often_it_is_planned(plans: Plans) -> None:
    assert len(run_sweep([*plans(16), *plans(16)], [right, right], **QUICK)) == 1


def test_a_resumed_run_does_only_what_is_missing(plans: Plans, folder: Path, keys_of: KeysOf) -> None:
    run_sweep(plans(8, 16), [right], out=folder, **QUICK)
    done: list[str] = []

    def tell(event: Any) -> None:
        if isinstance(event, Finished):
            done.append(f"{event.result.backend} {event.result.case['q_len']}")

    whole = run_sweep(plans(8, 16, 24), [right, also_right], out=folder, resume=True, on_event=tell, **QUICK)
    assert sorted(done) == ["also_right 16", "also_right 24", "also_right 8", "right 24"]
    assert keys_of(whole) == keys_of(Store(folder).read())
    assert len(set(keys_of(whole))) == len(whole) == 6


def test_a_resumed_run_does_again_what_failed_in_a_way_that_may_pass(plans: Plans, folder: Path) -> None:
    fails = [True]

    def shaky(q: Any, k: Any, v: Any, **options: Any) -> Any:
        if fails:
            raise ValueError("not today")
        return right(q, k, v, **options)

    run_sweep(plans(8, 16), [shaky, wrong], out=folder, **QUICK)
    assert {r.status for r in Store(folder).read()} == {"error", "wrong"}
    fails.clear()
    kept = run_sweep(plans(8, 16), [shaky, wrong], out=folder, resume=True, keep_failures=True, **QUICK)
    assert [r.status for r in kept if r.backend == "shaky"] == ["error", "error"]
    one = run_sweep(plans(8), [shaky, wrong], out=folder, resume=True, **QUICK)
    assert [(r.case["q_len"], r.status) for r in one if r.backend == "shaky"] == [(16, "error"), (8, "ok")]
    stored = [(r.case["q_len"], r.status) for r in Store(folder).read() if r.backend == "shaky"]
    assert sorted(stored) == [(8, "ok"), (16, "error")]
    assert len((folder / "results.jsonl").read_text().splitlines()) == 5  # nothing that was written is lost
    assert len(read_results(folder)) == 4


def test_another_seed_is_another_result(plans: Plans, folder: Path) -> None:
    run_sweep(plans(8), [right], out=folder, **QUICK)
    assert len(run_sweep(plans(8), [right], out=folder, resume=True, seed=1, **QUICK)) == 2


def test_a_run_into_a_folder_with_results_says_what_to_do(plans: Plans, folder: Path) -> None:
    run_sweep(plans(8), [right], out=folder, **QUICK)
    with pytest.raises(StoreError, match="--resume"):
        run_sweep(plans(8), [right], out=folder, **QUICK)


def test_a_row_is_on_the_disk_when_its_event_comes(plans: Plans, folder: Path) -> None:
    seen = []

    def tell(event: Any) -> None:
        if isinstance(event, Finished):
            seen.append(len(Store(folder).read()) == event.rows_done)

    run_sweep(plans(8, 16), [right, wrong], out=folder, on_event=tell, **QUICK)
    assert seen == [True] * 4


def test_an_interrupted_run_keeps_its_rows_and_holds_the_folder_no_longer(plans: Plans, folder: Path) -> None:
    def interrupt(event: Any) -> None:
        if isinstance(event, Finished):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_sweep(plans(8, 16), [right], out=folder, on_event=interrupt, **QUICK)
    assert len(Store(folder).read()) == 1
    assert len(run_sweep(plans(8, 16), [right], out=folder, resume=True, **QUICK)) == 2
    assert not (folder / ".references").exists()


def test_events_tell_the_course_of_the_sweep(plans: Plans) -> None:
    seen: list[Any] = []
    run_sweep(plans(8), [right, wrong], on_event=seen.append, **QUICK)
    seen = [event for event in seen if not isinstance(event, Doing)]
    assert [type(e) for e in seen] == [
        SweepStarted,
        CaseStarted,
        Judged,
        Judged,
        Finished,
        Finished,
        SweepFinished,
    ]
    assert seen[0].rows == 2
    assert [(e.backend, e.status) for e in seen if isinstance(e, Judged)] == [
        ("right", "ok"),
        ("wrong", "wrong"),
    ]
    assert [e.rows_done for e in seen if isinstance(e, Finished)] == [1, 2]


def test_every_row_names_the_environment_it_was_measured_in(plans: Plans, folder: Path) -> None:
    (result,) = run_sweep(plans(8), [right], out=folder, **QUICK)
    environment = Store(folder).environments()[result.environment]
    assert environment["machine"] == result.machine
    assert environment["roofs"]["matmul_flops_per_s"]["fp32"] > 0


@pytest.mark.parametrize(
    ("name", "message"), [("naiv", "did you mean 'naive'"), ("nowhere/mine.py:attention", "mine.py")]
)
def test_an_unknown_backend_is_refused_before_anything_is_run(
    plans: Plans, folder: Path, name: str, message: str
) -> None:
    with pytest.raises(UnknownBackend, match=message):
        run_sweep(plans(8), [name], out=folder, **QUICK)
    assert not folder.exists()


def test_a_device_that_does_not_exist_is_refused_before_anything_is_run(plans: Plans, folder: Path) -> None:
    with pytest.raises(AttnbenchError, match="no device 'tpu'; take auto, cpu, cuda"):
        run_sweep(plans(8), [right], out=folder, device="tpu")
    assert not folder.exists()


def test_samples_are_what_the_clock_says(plans: Plans, tmp_path: Path) -> None:
    clock = FakeClock()

    def ticking(*arguments: Any, **options: Any) -> Tensor:
        clock.advance(3.0)
        return right(*arguments, **options)

    bench = Bench("cpu", clock=clock)
    bench.open(ticking)
    case = plans(16)[0].case.to_json()
    path = str(tmp_path / "reference.npz")
    bench.reference(case, 0, "randn", "flash", path)
    judged = bench.judge(case, 0, "randn", path)
    assert judged["paces"]["fwd"]["call_ms"] == 3.0
    assert bench.block(12.0)["samples_ms"] == {"fwd": [3.0] * 4}
    assert bench.recheck()["ok"]


def test_an_answer_that_is_kept_while_it_is_timed_is_wrong(plans: Plans, tmp_path: Path) -> None:
    clock = FakeClock()
    kept: list[Tensor] = []

    def remembering(*arguments: Any, **options: Any) -> Tensor:
        clock.advance(3.0)
        if len(kept) < 3:  # right while it is judged and warmed up
            kept.append(right(*arguments, **options))
        return kept[-1]

    bench = Bench("cpu", clock=clock)
    bench.open(remembering)
    case = plans(16)[0].case.to_json()
    path = str(tmp_path / "reference.npz")
    bench.reference(case, 0, "randn", "flash", path)
    assert bench.judge(case, 0, "randn", path)["ok"]
    bench.block(12.0)
    recheck = bench.recheck()
    assert not recheck["ok"]
    assert "the answer is kept" in recheck["reason"]


class ScriptedSlot:
    """A slot whose warm-up finds a call of `call_ms`."""

    declared = None

    def __init__(self, call_ms: float) -> None:
        self.name = "scripted"
        self.call_ms = call_ms

    def ready(self) -> dict[str, Any]:
        return {"version": "1", "contract": "flash", "clock": "fake"}

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        pace = {"call_ms": self.call_ms, "calls_per_sample": 1, "warm_up_calls": 1, "settled": True}
        judged: dict[str, Any] = {
            "kernel": "",
            "prepare_ms": {},
            "errors": {},
            "error_over_budget": 0.1,
            "memory_bytes": {},
        }
        return {"refusal": None} if step == "admit" else {**judged, "ok": True, "paces": {"fwd": pace}}


@pytest.mark.parametrize(
    ("call_ms", "rounds"),
    [(0.5, 10), (100.0, 10), (500.0, 6), (2000.0, 3), (9000.0, 1)],
)
def test_slow_cases_are_timed_in_fewer_rounds(plans: Plans, call_ms: float, rounds: int) -> None:
    case = plans(16)[0].case
    blank = Result(case=case.to_json(), case_id=case.id, backend="scripted", status="error")
    slot: Any = ScriptedSlot(call_ms)
    run = CaseRun(slot, blank, TimingSettings(case_seconds=3.0), reference=lambda contract: "")
    run.judge()
    assert run.rounds == rounds


def test_inputs_are_the_same_for_every_backend(plans: Plans) -> None:
    sums: list[float] = []

    def seen(q: Tensor, *arguments: Any, **options: Any) -> Tensor:
        sums.append(float(q.sum()))
        return right(q, *arguments, **options)

    plan = plans(16)
    run_sweep(plan, [FunctionBackend(seen, "a"), FunctionBackend(seen, "b")], seed=7, **QUICK)
    assert set(sums) == {float(make_inputs(plan[0].case, 7).q.sum())}


def test_a_backend_given_up_before_it_started_is_unavailable_in_each_case(plans: Plans) -> None:
    results = run_sweep(plans(8, 16), ["flash_attn", right], **QUICK)
    rows = [r for r in results if r.backend == "flash_attn"]
    if rows[0].status == "refused":
        pytest.skip("flash_attn is installed here")
    assert [r.status for r in rows] == ["unavailable"] * 2
    assert all("to have it: " in r.reason for r in rows)
