"""The CUDA clock times the device and not the host, on a device that has a time of its own."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.measure import CudaClock, WarmCudaClock, find_pace, time_block
from attnbench.measure.clocks import Hold, held_ms

CALL_MS, LAUNCH_MS = 0.08, 0.3  # a kernel of 80 us behind 300 us of Python


def clock_of(cuda: Any, flush_ms: float = 0.05) -> CudaClock:
    clock = CudaClock(cuda, flush=lambda: cuda.runs("flush", flush_ms, launch_ms=0.01))
    clock.now_ns = cuda.now_ns  # type: ignore[method-assign]
    return clock


def call_of(cuda: Any, launch_ms: float = LAUNCH_MS) -> Any:
    return lambda: cuda.runs("call", CALL_MS, launch_ms)


def test_without_the_hosts_time_a_sample_holds_it(cuda: Any) -> None:
    timed = clock_of(cuda).time(call_of(cuda), samples=3)
    assert timed.samples_ms == pytest.approx([CALL_MS + LAUNCH_MS] * 3)  # the clock as it was
    assert timed.host_ms == pytest.approx([LAUNCH_MS] * 3)


def test_held_back_for_longer_than_the_host_takes_a_sample_is_the_device_alone(cuda: Any) -> None:
    timed = clock_of(cuda).time(call_of(cuda), samples=20, host_ms=LAUNCH_MS)
    assert timed.samples_ms == pytest.approx([CALL_MS] * 20)
    assert (len(timed.host_ms), timed.late) == (20, 0)
    assert timed.host_ms == pytest.approx([LAUNCH_MS] * 20)


def test_the_gaps_between_the_kernels_of_a_call_are_not_the_hosts(cuda: Any) -> None:
    def call() -> None:
        for _ in range(10):
            cuda.runs("kernel", 0.01, launch_ms=0.03)

    assert clock_of(cuda).time(call, samples=4).samples_ms[-1] > 0.3
    assert clock_of(cuda).time(call, samples=4, host_ms=0.3).samples_ms == pytest.approx([0.1] * 4)


def test_a_sample_in_which_the_host_is_late_is_left_out_unless_all_are(cuda: Any) -> None:
    launches = iter([0.3, 5.0, 0.3])
    timed = clock_of(cuda).time(lambda: cuda.runs("call", CALL_MS, next(launches)), samples=3, host_ms=0.3)
    assert timed.samples_ms == pytest.approx([CALL_MS] * 2)
    assert timed.late == 0
    slow = clock_of(cuda).time(call_of(cuda, launch_ms=2.0), samples=3, host_ms=0.3)
    assert (len(slow.samples_ms), slow.late) == (3, 3)


def test_a_call_that_waits_for_the_device_is_told(cuda: Any) -> None:
    def waits() -> None:
        cuda.runs("call", CALL_MS, LAUNCH_MS)
        cuda.synchronize()

    assert clock_of(cuda).time(waits, samples=5, host_ms=CALL_MS + LAUNCH_MS).late == 5


def test_the_warm_up_finds_the_hosts_time_and_blocks_use_it(cuda: Any) -> None:
    clock = clock_of(cuda)
    launches = iter([90.0])  # the first call compiles
    pace = find_pace(clock, lambda: cuda.runs("call", CALL_MS, next(launches, LAUNCH_MS)))
    assert pace.host_ms == pytest.approx(LAUNCH_MS)
    assert pace.call_ms == pytest.approx(CALL_MS)
    assert pace.settled
    assert pace.samples_in(12.0) == int(12.0 / (CALL_MS + held_ms(LAUNCH_MS)))
    block = time_block(clock, call_of(cuda), pace)
    assert block.samples_ms == pytest.approx([CALL_MS] * pace.samples_in(12.0))


def test_one_block_is_synchronised_once_and_the_flush_is_before_the_hold(cuda: Any) -> None:
    clock = clock_of(cuda)
    clock.time(call_of(cuda), samples=1, host_ms=0.1)  # finds out how long a cycle of the hold is
    cuda.log.clear()
    clock.time(call_of(cuda), samples=2, host_ms=0.1)
    once = ["flush", "hold", "record", "call", "record"]
    assert cuda.log == [*once, *once, "synchronize"]


def test_a_hold_lasts_as_long_as_asked(cuda: Any) -> None:
    hold = Hold(cuda)
    hold(1.0)
    before = cuda.device_ms
    hold(0.7)
    assert cuda.device_ms - before == pytest.approx(0.7, rel=1e-3)


def test_calls_are_never_averaged_because_the_second_would_find_a_warm_cache(cuda: Any) -> None:
    with pytest.raises(ValueError, match="cold L2"):
        clock_of(cuda).time(lambda: None, samples=1, calls_per_sample=2)


def test_the_warm_clock_flushes_nothing_and_does_not_count_the_call_that_warms(cuda: Any) -> None:
    clock = WarmCudaClock(cuda)
    clock.now_ns = cuda.now_ns  # type: ignore[method-assign]
    assert clock.name != CudaClock.name
    durations = iter([9.0, 1.5, 2.5])
    timed = clock.time(lambda: cuda.runs("call", next(durations), LAUNCH_MS), samples=2, host_ms=LAUNCH_MS)
    assert timed.samples_ms == pytest.approx([1.5, 2.5])
    assert "flush" not in cuda.log
