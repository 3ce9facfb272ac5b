"""Does the CUDA clock flush, synchronise and record in the right order? On a device that writes it down."""

from __future__ import annotations

import pytest

from attnbench.measure import CudaClock


class RecordingCuda:
    """What a CudaClock needs of torch.cuda; the device's time moves by what calls and flushes take."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0

    def Event(self, enable_timing: bool) -> RecordedEvent:
        assert enable_timing
        return RecordedEvent(self)

    def synchronize(self) -> None:
        self.log.append("synchronize")

    def runs(self, what: str, ms: float) -> None:
        self.log.append(what)
        self.now_ms += ms


class RecordedEvent:
    def __init__(self, cuda: RecordingCuda) -> None:
        self._cuda = cuda
        self.at_ms: float | None = None

    def record(self) -> None:
        self._cuda.log.append("record")
        self.at_ms = self._cuda.now_ms

    def elapsed_time(self, end: RecordedEvent) -> float:
        assert self._cuda.log[-1] == "synchronize", "events are read before the device is done"
        assert self.at_ms is not None
        assert end.at_ms is not None
        return end.at_ms - self.at_ms


def test_each_sample_is_one_call_with_a_flushed_cache_outside_the_window() -> None:
    cuda = RecordingCuda()
    clock = CudaClock(cuda, flush=lambda: cuda.runs("flush", 100.0))
    durations = iter([1.5, 2.5])
    timed = clock.time(lambda: cuda.runs("call", next(durations)), samples=2)
    assert timed.samples_ms == [1.5, 2.5]
    once = ["flush", "synchronize", "record", "call", "record"]
    assert cuda.log == [*once, *once, "synchronize"]


def test_calls_are_never_averaged_because_the_second_would_find_a_warm_cache() -> None:
    cuda = RecordingCuda()
    with pytest.raises(ValueError, match="cold L2"):
        CudaClock(cuda, flush=lambda: None).time(lambda: None, samples=1, calls_per_sample=2)
