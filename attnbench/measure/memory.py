"""Memory: peak bytes above the inputs in forward and backward, and the bytes held between the two."""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.backend.interface import Prepared

# Resident memory counts whole pages, thread stacks and holes in the heap: differences within this are ignored.
RESIDENT_SLACK_BYTES = 16 << 20
RESIDENT_SLACK_FACTOR = 2
OUTSIDE_SLACK_BYTES = 64 << 20  # modules and local memory that the driver loads at a kernel's first launch
_STATUS = Path("/proc/self/status")


def measure_memory(
    prepared: Prepared,
    dout: Tensor | None,
    device: str,
    process_bytes: Callable[[], int | None] = lambda: None,
) -> dict[str, int]:
    """Peak bytes above the inputs: `fwd_peak`; with `dout` also `saved` and `bwd_peak`.

    `saved` is what is held between forward and backward, the output included; `bwd_peak` includes it. On a CPU
    the events of torch's allocator are counted; if `fwd_resident` / `bwd_resident` (the rise of the resident set's
    high-water mark, if the system reports it) exceed the peaks by more than the slack, memory was taken outside torch
    and they replace them. On a GPU the driver's figure for the process (`process_bytes`, see GpuState) serves the
    same purpose: what it holds beyond torch's reservation, `fwd_outside` and `bwd_outside`, is added to the peaks
    beyond a slack. Runs the forward and the backward once, unless the prepared case measures its own memory.
    """
    prepared.drop_graph()
    own = prepared.memory()
    if own is not None:
        return own
    if device.split(":")[0] == "cuda":
        import torch

        return _cuda_memory(prepared, dout, torch.cuda, process_bytes)
    return _cpu_memory(prepared, dout)


def _cuda_memory(
    prepared: Prepared,
    dout: Tensor | None,
    cuda: Any,
    process_bytes: Callable[[], int | None] = lambda: None,
) -> dict[str, int]:
    cuda.synchronize()
    outside = _Outside(cuda, process_bytes)
    baseline = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    output = prepared.forward()
    cuda.synchronize()
    sizes = {"fwd_peak": cuda.max_memory_allocated() - baseline}
    outside.add_to(sizes, "fwd")
    if dout is not None:
        sizes["saved"] = cuda.memory_allocated() - baseline
        cuda.reset_peak_memory_stats()
        gradients = prepared.backward(dout)
        cuda.synchronize()
        sizes["bwd_peak"] = cuda.max_memory_allocated() - baseline
        outside.add_to(sizes, "bwd")
        del gradients
    sizes["reserved"] = cuda.max_memory_reserved()
    del output
    return sizes


class _Outside:
    """The GPU memory that the process takes outside torch's allocator, counted from the construction of this.

    The driver reports what is held now, not a peak: a workspace freed before its call returns is missed.
    """

    def __init__(self, cuda: Any, process_bytes: Callable[[], int | None]) -> None:
        self._cuda, self._process_bytes = cuda, process_bytes
        self._before = self._now()

    def _now(self) -> int | None:
        held = self._process_bytes()
        return None if held is None else held - self._cuda.memory_reserved()

    def add_to(self, sizes: dict[str, int], which: str) -> None:
        now = self._now()
        if now is None or self._before is None:
            return
        sizes[f"{which}_outside"] = taken = max(0, now - self._before)
        if taken > OUTSIDE_SLACK_BYTES:
            sizes[f"{which}_peak"] += taken


def _cpu_memory(prepared: Prepared, dout: Tensor | None) -> dict[str, int]:
    resident = _ResidentRise()
    output, peak, held = allocated_by(prepared.forward)
    sizes = {"fwd_peak": peak}
    _add_resident(sizes, "fwd", resident.peak_bytes())
    if dout is not None:
        sizes["saved"] = held
        resident.restart_peak()
        _, rise, _ = allocated_by(lambda: prepared.backward(dout))
        sizes["bwd_peak"] = held + rise
        _add_resident(sizes, "bwd", resident.peak_bytes())
    del output
    return sizes


def _add_resident(sizes: dict[str, int], which: str, resident_bytes: int | None) -> None:
    if resident_bytes is None:
        return
    sizes[f"{which}_resident"] = resident_bytes
    counted = sizes[f"{which}_peak"]
    if resident_bytes > counted * RESIDENT_SLACK_FACTOR + RESIDENT_SLACK_BYTES:
        sizes[f"{which}_peak"] = resident_bytes


def allocated_by(call: Callable[[], Any]) -> tuple[Any, int, int]:
    """What the call returned, the peak of torch's bytes during it, and the bytes still held after it."""
    # Kineto logs each start and stop on stderr by default.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    from torch.autograd.profiler import profile

    with profile(profile_memory=True) as profiler:
        returned = call()
    if profiler.kineto_results is None:
        raise RuntimeError("torch's profiler gave no events; is another profiler running?")
    events = [(e.start_ns(), e.nbytes()) for e in profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for _, size in sorted(events, key=lambda event: event[0]):
        held += size
        peak = max(peak, held)
    return returned, peak, held


class _ResidentRise:
    """The rise of the resident set since the construction of this."""

    def __init__(self) -> None:
        gc.collect(0)
        self._works = self.restart_peak()
        self._baseline = _status_bytes("VmRSS") if self._works else 0

    def restart_peak(self) -> bool:
        # Memory freed earlier but kept by the allocator would be reused without a rise.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
        if trim is not None:
            trim(0)
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def peak_bytes(self) -> int | None:
        return max(0, _status_bytes("VmHWM") - self._baseline) if self._works else None


def _status_bytes(name: str) -> int:
    match = re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0
