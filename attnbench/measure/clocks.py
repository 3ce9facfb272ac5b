"""The clocks that time calls: the host's on a CPU, events on a GPU, a fake one in tests."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # pragma: no cover - Windows counts no context switches
    resource = None  # type: ignore[assignment]

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timed:
    """Milliseconds per call, one number per sample; what the last call returned; involuntary context switches."""

    samples_ms: list[float]
    last: Any
    involuntary_switches: int


class Clock(Protocol):
    """Times calls.

    `averages` says whether a sample may be the mean of several calls (never if each call needs its own flush).
    `name` is stored with the samples.
    """

    name: str
    averages: bool

    def time(self, call: Call, samples: int, calls_per_sample: int = 1) -> Timed:
        """Time `samples` x `calls_per_sample` calls."""
        ...


class CpuClock:
    """The host's clock: perf_counter_ns around each sample, garbage collection off in the loop."""

    name = "perf_counter_ns"
    averages = True

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def time(self, call: Call, samples: int, calls_per_sample: int = 1) -> Timed:
        now_ns, between = self.now_ns, range(calls_per_sample - 1)
        samples_ms: list[float] = []
        last = None
        was_collecting = gc.isenabled()
        gc.disable()
        switches = _involuntary_switches()
        try:
            for _ in range(samples):
                # Free the last output first: one is alive at a time, as in a user's loop.
                last = None
                start_ns = now_ns()
                for _ in between:
                    call()
                last = call()
                samples_ms.append((now_ns() - start_ns) / calls_per_sample / 1e6)
        finally:
            if was_collecting:
                gc.enable()
        return Timed(samples_ms, last, _involuntary_switches() - switches)


class ProcessClock(CpuClock):
    """The processor time of this process: other work on the cores does not count.

    Valid if one thread does the work; time that a call spends waiting is not measured.
    """

    name = "process_time_ns"

    def now_ns(self) -> int:
        return time.process_time_ns()


class FakeClock(CpuClock):
    """A clock that moves only by `clock.advance(ms)`, which the call under test makes."""

    name = "fake"

    def __init__(self) -> None:
        self.elapsed_ns = 0

    def now_ns(self) -> int:
        return self.elapsed_ns

    def advance(self, ms: float) -> None:
        self.elapsed_ns += round(ms * 1e6)


class CudaClock:
    """Events around each call, with a cold L2: from the first kernel's launch to the last one's end.

    Before each start event a buffer of twice the device's L2 is zeroed and the device is synchronised, or
    the tail of the flush would run inside the window. The events are read after one synchronisation per block.
    `cuda` is torch.cuda (or a stand-in, in tests); `flush` zeroes the buffer.
    """

    name = "cuda_events_cold_l2"
    averages = False

    def __init__(self, cuda: Any, flush: Call) -> None:
        self._cuda = cuda
        self._flush = flush

    def time(self, call: Call, samples: int, calls_per_sample: int = 1) -> Timed:
        if calls_per_sample != 1:
            raise ValueError("a sample on CUDA is one call: only the first of several would find a cold L2")
        cuda = self._cuda
        starts = [cuda.Event(enable_timing=True) for _ in range(samples)]
        ends = [cuda.Event(enable_timing=True) for _ in range(samples)]
        last = None
        was_collecting = gc.isenabled()
        gc.disable()
        switches = _involuntary_switches()
        try:
            for start, end in zip(starts, ends, strict=True):
                last = None
                self._flush()
                cuda.synchronize()
                start.record()
                last = call()
                end.record()
            cuda.synchronize()
        finally:
            if was_collecting:
                gc.enable()
        samples_ms = [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]
        return Timed(samples_ms, last, _involuntary_switches() - switches)


class WarmCudaClock(CudaClock):
    """Events around each call with the L2 as the previous call left it, as in a loop over one buffer.

    Never the main clock: it is stored beside the cold one under its own name.
    """

    name = "cuda_events_warm_l2"

    def __init__(self, cuda: Any) -> None:
        super().__init__(cuda, lambda: None)

    def time(self, call: Call, samples: int, calls_per_sample: int = 1) -> Timed:
        call()  # warms it
        return super().time(call, samples, calls_per_sample)


def _involuntary_switches() -> int:
    # Of the whole process: a switched-out OpenMP thread delays the others at the barrier.
    return resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw if resource is not None else 0


def clock_for(device: str, process_time: bool = False) -> Clock:
    """The clock of a device: CUDA events with a flush of twice its real L2, else the host's clock.

    `process_time` counts this process's processor time instead.
    """
    if device.split(":")[0] != "cuda":
        return ProcessClock() if process_time else CpuClock()
    import torch

    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    buffer: torch.Tensor = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)
    return CudaClock(torch.cuda, buffer.zero_)
