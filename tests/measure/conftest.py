"""A stand-in for torch.cuda that records calls, and whose time moves only by what runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class RecordingCuda:
    """The part of torch.cuda that a clock uses; the device's time moves by the duration of calls and flushes."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.now_ms = 0.0
        self.capturing: RecordedGraph | None = None

    def Event(self, enable_timing: bool) -> RecordedEvent:
        assert enable_timing
        return RecordedEvent(self)

    def synchronize(self) -> None:
        assert self.capturing is None, "a capture must not wait for the device"
        self.log.append("synchronize")

    def runs(self, what: str, ms: float, launch_ms: float = 0.0) -> None:
        """A kernel of `ms`, after a launch of `launch_ms` unless it is replayed."""
        self.log.append(what)
        if self.capturing is not None:
            self.capturing.kernels.append((what, ms))
            return
        self.now_ms += ms + launch_ms

    def Stream(self) -> str:
        return "side"

    @contextmanager
    def stream(self, stream: str) -> Iterator[None]:
        self.log.append(f"on {stream}")
        yield

    def CUDAGraph(self) -> RecordedGraph:
        return RecordedGraph(self)

    @contextmanager
    def graph(self, graph: RecordedGraph, stream: str) -> Iterator[None]:
        self.capturing = graph
        try:
            yield
        finally:
            self.capturing = None


class RecordedGraph:
    def __init__(self, cuda: RecordingCuda) -> None:
        self._cuda = cuda
        self.kernels: list[tuple[str, float]] = []

    def replay(self) -> None:
        self._cuda.log.append("replay")
        self._cuda.now_ms += sum(ms for _, ms in self.kernels)


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


@pytest.fixture
def cuda() -> RecordingCuda:
    return RecordingCuda()
