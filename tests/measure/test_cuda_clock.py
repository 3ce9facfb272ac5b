"""The CUDA clock flushes, synchronises and records in the right order, on a recording device."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.measure import CudaClock, WarmCudaClock


def test_each_sample_is_one_call_with_a_flushed_cache_outside_the_window(cuda: Any) -> None:
    clock = CudaClock(cuda, flush=lambda: cuda.runs("flush", 100.0))
    durations = iter([1.5, 2.5])
    timed = clock.time(lambda: cuda.runs("call", next(durations)), samples=2)
    assert timed.samples_ms == [1.5, 2.5]
    once = ["flush", "synchronize", "record", "call", "record"]
    assert cuda.log == [*once, *once, "synchronize"]


def test_calls_are_never_averaged_because_the_second_would_find_a_warm_cache(cuda: Any) -> None:
    with pytest.raises(ValueError, match="cold L2"):
        CudaClock(cuda, flush=lambda: None).time(lambda: None, samples=1, calls_per_sample=2)


def test_the_warm_clock_flushes_nothing_and_does_not_count_the_call_that_warms(cuda: Any) -> None:
    durations = iter([9.0, 1.5, 2.5])
    clock = WarmCudaClock(cuda)
    assert clock.name != CudaClock.name
    timed = clock.time(lambda: cuda.runs("call", next(durations)), samples=2)
    assert timed.samples_ms == [1.5, 2.5]
    once = ["synchronize", "record", "call", "record"]
    assert cuda.log == ["call", *once, *once, "synchronize"]
