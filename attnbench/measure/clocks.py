"""The clocks that time calls: the host's on a CPU, events on a GPU, a fake one in tests."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

try:
    import resource
except ImportError:  # pragma: no cover - Windows counts no context switches
    resource = None  # type: ignore[assignment]

Call = Callable[[], Any]
# Before each call a GPU is held back for this many times the host's time to enqueue it, and somewhat more.
HELD_FACTOR, HELD_MORE_MS, MOST_HELD_MS = 2.0, 0.05, 50.0
PROBES, PROBE_CYCLES = 3, 1 << 21  # a millisecond each at 2 GHz


@dataclass(frozen=True)
class Timed:
    """Milliseconds per call, one number per sample; what the last call returned; involuntary context switches.

    On a GPU also `host_ms`, the host's time to enqueue each call, and `late`, how many samples contain such time.
    """

    samples_ms: list[float]
    last: Any
    involuntary_switches: int
    host_ms: list[float] = field(default_factory=list)
    late: int = 0


class Clock(Protocol):
    """Times calls.

    `averages` says whether a sample may be the mean of several calls (never if each call needs its own flush).
    `name` is stored with the samples.
    """

    name: str
    averages: bool

    def time(self, call: Call, samples: int, calls_per_sample: int = 1, host_ms: float = 0.0) -> Timed:
        """Time `samples` x `calls_per_sample` calls. `host_ms`: how long the host takes to enqueue one on a GPU."""
        ...


class CpuClock:
    """The host's clock: perf_counter_ns around each sample, garbage collection off in the loop."""

    name = "perf_counter_ns"
    averages = True

    def now_ns(self) -> int:
        return time.perf_counter_ns()

    def time(self, call: Call, samples: int, calls_per_sample: int = 1, host_ms: float = 0.0) -> Timed:
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


def held_ms(host_ms: float) -> float:
    """How long the device is held back before a call that the host takes `host_ms` to enqueue; 0 if that is unknown."""
    return min(MOST_HELD_MS, HELD_FACTOR * host_ms + HELD_MORE_MS) if host_ms > 0 else 0.0


class Hold:
    """Keeps a GPU busy for a time without touching memory, so that the host can enqueue ahead of it."""

    def __init__(self, cuda: Any) -> None:
        self._cuda = cuda
        self._cycles_per_ms = 0.0

    def __call__(self, ms: float) -> None:
        self._cuda._sleep(int(ms * (self._cycles_per_ms or self._calibrated())))

    def _calibrated(self) -> float:
        """Cycles per millisecond: the highest rate of a few tries, since an idle GPU wakes slowly."""
        cuda = self._cuda
        for _ in range(PROBES):
            start, end = (cuda.Event(enable_timing=True) for _ in range(2))
            cuda.synchronize()
            start.record()
            cuda._sleep(PROBE_CYCLES)
            end.record()
            cuda.synchronize()
            rate = PROBE_CYCLES / max(start.elapsed_time(end), 1e-3)
            self._cycles_per_ms = max(self._cycles_per_ms, rate)
        return self._cycles_per_ms


class CudaClock:
    """Events around each call, with a cold L2: the time of its kernels and of the gaps between them, not the host's.

    For each sample, all on one stream: a buffer of twice the device's L2 is zeroed, the device is held back for longer
    than the host takes to enqueue a call, start event, call, end event. So the start event fires when the call is
    queued, and nothing is synchronised until the block ends. While `host_ms` is unknown, the device is not held but
    synchronised before the start event, and the window holds the host's time.

    A sample whose call took the host longer than the device was held is late: it is left out if another is on time.
    `cuda` is torch.cuda (or a stand-in, in tests); `flush` zeroes the buffer.
    """

    name = "cuda_events_cold_l2"
    averages = False
    now_ns = staticmethod(time.perf_counter_ns)

    def __init__(self, cuda: Any, flush: Call, hold: Hold | None = None) -> None:
        self._cuda, self._flush = cuda, flush
        self._hold = hold or Hold(cuda)

    def time(self, call: Call, samples: int, calls_per_sample: int = 1, host_ms: float = 0.0) -> Timed:
        if calls_per_sample != 1:
            raise ValueError("a sample on CUDA is one call: only the first of several would find a cold L2")
        cuda, now_ns, held = self._cuda, self.now_ns, held_ms(host_ms)
        starts = [cuda.Event(enable_timing=True) for _ in range(samples)]
        ends = [cuda.Event(enable_timing=True) for _ in range(samples)]
        enqueued_ms: list[float] = []
        last = None
        was_collecting = gc.isenabled()
        gc.disable()
        switches = _involuntary_switches()
        try:
            for start, end in zip(starts, ends, strict=True):
                last = None
                self._flush()
                if held:
                    self._hold(held)
                else:
                    cuda.synchronize()
                start.record()
                begun_ns = now_ns()
                last = call()
                enqueued_ms.append((now_ns() - begun_ns) / 1e6)
                end.record()
            cuda.synchronize()
        finally:
            if was_collecting:
                gc.enable()
        taken = [start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)]
        on_time = [ms for ms, host in zip(taken, enqueued_ms, strict=True) if not held or host <= held]
        late = samples - len(on_time)
        switches = _involuntary_switches() - switches
        return Timed(on_time or taken, last, switches, enqueued_ms, 0 if on_time else late)


class WarmCudaClock(CudaClock):
    """Events around each call with the L2 as the previous call left it, as in a loop over one buffer.

    Never the main clock: it is stored beside the cold one under its own name.
    """

    name = "cuda_events_warm_l2"

    def __init__(self, cuda: Any, hold: Hold | None = None) -> None:
        super().__init__(cuda, lambda: None, hold)

    def time(self, call: Call, samples: int, calls_per_sample: int = 1, host_ms: float = 0.0) -> Timed:
        call()  # warms it
        return super().time(call, samples, calls_per_sample, host_ms)


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
