"""Warm-up, samples and blocks are as specified, on a fake clock so that nothing waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attnbench.measure import CpuClock, FakeClock, Pace, find_pace, time_block


def taking(clock: FakeClock, *durations_ms: float) -> Callable[[], int]:
    """A call that takes these times one after the other, and the last one from then on."""
    calls = 0

    def call() -> int:
        nonlocal calls
        clock.advance(durations_ms[min(calls, len(durations_ms) - 1)])
        calls += 1
        return calls

    return call


def test_a_sample_is_the_mean_of_its_calls() -> None:
    clock = FakeClock()
    timed = clock.time(taking(clock, 1.0, 3.0, 5.0, 7.0), samples=2, calls_per_sample=2)
    assert timed.samples_ms == [2.0, 6.0]


def test_the_output_of_the_very_last_call_is_kept() -> None:
    clock = FakeClock()
    assert clock.time(taking(clock, 1.0), samples=3, calls_per_sample=4).last == 12


def test_no_output_is_held_while_the_next_sample_runs() -> None:
    alive = []

    class Out:
        def __init__(self) -> None:
            alive.append(self)

        def __del__(self) -> None:
            ended.append(1)

    ended: list[int] = []
    counts: list[int] = []

    def call() -> Out:
        counts.append(len(ended))
        out = Out()
        alive.clear()
        return out

    CpuClock().time(call, samples=4)
    assert counts == [0, 1, 2, 3]


def test_garbage_collection_is_off_in_the_loop_and_back_on_after_an_exception() -> None:
    import gc

    seen = []

    def call() -> None:
        seen.append(gc.isenabled())
        raise KeyError

    with pytest.raises(KeyError):
        CpuClock().time(call, samples=1)
    assert seen == [False]
    assert gc.isenabled()


def test_warm_up_goes_on_until_three_calls_agree() -> None:
    clock = FakeClock()
    pace = find_pace(clock, taking(clock, 50.0, 20.0, 9.0, 3.0, 3.1, 3.0), sample_ms=1.0, limit_ms=1000.0)
    assert pace == Pace(call_ms=3.0, calls_per_sample=1, warm_up_calls=6, settled=True)


def test_warm_up_that_never_settles_ends_at_its_limit_and_says_so() -> None:
    clock = FakeClock()
    pace = find_pace(clock, taking(clock, *([10.0, 20.0] * 50)), limit_ms=100.0)
    assert not pace.settled
    assert clock.elapsed_ns <= 130e6


def test_a_slow_call_is_warmed_up_once() -> None:
    clock = FakeClock()
    assert find_pace(clock, taking(clock, 5000.0)).warm_up_calls == 1


def test_short_calls_share_a_sample_of_about_a_millisecond() -> None:
    clock = FakeClock()
    pace = find_pace(clock, taking(clock, 0.004), sample_ms=1.0)
    assert pace.calls_per_sample == 250
    assert pace.samples_in(12.0) == 12


def test_a_clock_that_reads_no_time_at_all_ends_the_warm_up() -> None:
    clock = FakeClock()
    assert find_pace(clock, taking(clock, 0.0)).calls_per_sample == 1


def test_a_block_fills_its_time_and_begins_with_a_call_that_is_not_counted() -> None:
    clock = FakeClock()
    pace = Pace(call_ms=2.0, calls_per_sample=1, warm_up_calls=3, settled=True)
    timed = time_block(clock, taking(clock, 99.0, 2.0), pace, block_ms=12.0)
    assert timed.samples_ms == [2.0] * 6


def test_a_block_of_a_slow_call_is_that_one_call() -> None:
    clock = FakeClock()
    pace = Pace(call_ms=700.0, calls_per_sample=1, warm_up_calls=1, settled=False)
    timed = time_block(clock, taking(clock, 700.0), pace, block_ms=12.0)
    assert timed.samples_ms == [700.0]
    assert timed.last == 1
    assert pace.block_ms(12.0) == 700.0


def test_the_host_clock_counts_elapsed_time() -> None:
    import time

    timed = CpuClock().time(lambda: time.sleep(0.002), samples=2)
    assert all(ms >= 2.0 for ms in timed.samples_ms)
