"""A stand-in for torch.cuda that records calls: a host and a device with a time of their own, which only calls move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest


class RecordingCuda:
    """The part of torch.cuda that a clock uses.

    The host enqueues and goes on; the device begins what is queued when it is free and the host has enqueued it.
    """

    CYCLES_PER_MS = 1.5e6

    def __init__(self) -> None:
        self.log: list[str] = []
        self.host_ms = 0.0
        self.device_ms = 0.0  # when the device will have done all that is queued
        self.capturing: RecordedGraph | None = None

    def Event(self, enable_timing: bool) -> RecordedEvent:
        assert enable_timing
        return RecordedEvent(self)

    def synchronize(self) -> None:
        assert self.capturing is None, "a capture must not wait for the device"
        self.log.append("synchronize")
        self.host_ms = max(self.host_ms, self.device_ms)

    def now_ns(self) -> int:
        return round(self.host_ms * 1e6)

    def _sleep(self, cycles: int) -> None:
        self.runs("hold", cycles / self.CYCLES_PER_MS)

    def runs(self, what: str, ms: float, launch_ms: float = 0.0) -> None:
        """A kernel of `ms`, enqueued by the host in `launch_ms` unless it is replayed."""
        self.log.append(what)
        if self.capturing is not None:
            self.capturing.kernels.append((what, ms))
            return
        self.host_ms += launch_ms
        self.device_ms = max(self.device_ms, self.host_ms) + ms

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
        self._cuda.device_ms = max(self._cuda.device_ms, self._cuda.host_ms) + sum(
            ms for _, ms in self.kernels
        )


class RecordedEvent:
    def __init__(self, cuda: RecordingCuda) -> None:
        self._cuda = cuda
        self.at_ms: float | None = None

    def record(self) -> None:
        self._cuda.log.append("record")
        self.at_ms = max(self._cuda.device_ms, self._cuda.host_ms)

    def elapsed_time(self, end: RecordedEvent) -> float:
        assert self._cuda.log[-1] == "synchronize", "events are read before the device is done"
        assert self.at_ms is not None
        assert end.at_ms is not None
        return end.at_ms - self.at_ms


@pytest.fixture
def cuda() -> RecordingCuda:
    return RecordingCuda()
