"""The profile of one case: operators by their own time, and the share that is not computation."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from attnbench.backend import Backend
from attnbench.problem import Case, Inputs

CALLS, WARM_UP = 10, 3
COPIES = frozenset(
    {"copy_", "clone", "contiguous", "_to_copy", "to", "cat", "fill_", "zero_", "zeros", "zeros_like"}
    | {"empty", "empty_like", "empty_strided", "repeat_interleave", "expand", "stack", "flip", "roll"}
)
DEVICE_COPIES = ("memcpy", "memset", "copy_kernel", "fillfunctor", "cataraybatched")


@dataclass(frozen=True)
class Operator:
    """One operator over all profiled calls: its calls and its own time (on the GPU if the case runs there)."""

    name: str
    calls: int
    own_ms: float
    is_copy: bool


@dataclass(frozen=True)
class Profile:
    """Times of one call in milliseconds: means over the profiled calls, medians for the wall clock.

    wall_ms         by direction ("fwd", "bwd"): one call without the profiler, by the wall clock
    operators       by own time, largest first
    computing_ms    own time of operators that compute, a forward and a backward together
    copying_ms      own time of operators that move or create tensors
    waiting_ms      the rest of a profiled call: Python, dispatch, launches, gaps between kernels
    prepare_ms      steps of preparation, once per case; `first_ms` is the whole preparation
    trace           the profiler: `trace.export_chrome_trace(path)`
    """

    kernel: str
    wall_ms: dict[str, float]
    operators: tuple[Operator, ...]
    computing_ms: float
    copying_ms: float
    waiting_ms: float
    prepare_ms: dict[str, float]
    first_ms: float
    trace: Any

    @property
    def outside_share(self) -> float:
        """The share of a warm call that is not computing."""
        total = self.computing_ms + self.copying_ms + self.waiting_ms
        return 1 - self.computing_ms / total if total else 0.0

    @property
    def outside_share_of_first(self) -> float:
        """The share of the first call that is not computing: preparation counts too."""
        total = self.computing_ms + self.copying_ms + self.waiting_ms + self.first_ms
        return 1 - self.computing_ms / total if total else 0.0


def profile_case(backend: Backend, case: Case, inputs: Inputs, calls: int = CALLS) -> Profile:
    """Prepare a case, time its calls by the wall clock, then profile as many of them."""
    on_gpu = inputs.device.type == "cuda"
    start_ns = time.perf_counter_ns()
    prepared = backend.prepare(case, inputs)
    _wait(on_gpu)
    first_ms = (time.perf_counter_ns() - start_ns) / 1e6

    def forward() -> None:
        prepared.forward()
        _wait(on_gpu)

    def backward() -> None:
        assert inputs.dout is not None
        prepared.backward(inputs.dout)
        _wait(on_gpu)

    passes = {"fwd": forward} | ({"bwd": backward} if case.needs_backward else {})
    for _ in range(WARM_UP):
        for call in passes.values():
            call()
    wall_ms = {name: statistics.median(_timed(call) for _ in range(calls)) for name, call in passes.items()}
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_gpu else [])
    profiled_ms = 0.0
    with profile(activities=activities, record_shapes=True) as trace:
        with record_function("attnbench: prepare again"):
            backend.prepare(case, inputs)
            _wait(on_gpu)
        for _ in range(calls):
            for name, call in passes.items():
                if name == "fwd" or case.needs_backward:
                    with record_function(f"attnbench: {name}"):
                        profiled_ms += _timed(call)
    operators = _operators(trace, on_gpu)
    computing = sum(o.own_ms for o in operators if not o.is_copy) / calls
    copying = sum(o.own_ms for o in operators if o.is_copy) / calls
    waiting = max(0.0, profiled_ms / calls - computing - copying)
    return Profile(
        prepared.kernel,
        wall_ms,
        operators,
        computing,
        copying,
        waiting,
        dict(prepared.prepare_ms),
        first_ms,
        trace,
    )


def _wait(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _timed(call: Any) -> float:
    start_ns = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start_ns) / 1e6


def _operators(trace: Any, on_gpu: bool) -> tuple[Operator, ...]:
    """The operators inside the profiled calls, without preparation, by their own time."""
    calls = [e for e in trace.events() if e.name in ("attnbench: fwd", "attnbench: bwd")]
    windows = [(e.time_range.start, e.time_range.end) for e in calls]
    total: dict[str, list[float]] = {}
    for event in trace.events():
        if event.name.startswith(("attnbench: ", "ProfilerStep", "cuda")):
            continue
        inside = any(start <= event.time_range.start <= end for start, end in windows)
        own_us = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        if inside and own_us > 0:
            line = total.setdefault(event.name, [0, 0.0])
            line[0] += 1
            line[1] += own_us / 1e3
    operators = [Operator(name, int(count), ms, _is_copy(name)) for name, (count, ms) in total.items()]
    return tuple(sorted(operators, key=lambda o: -o.own_ms))


def _is_copy(name: str) -> bool:
    return name.removeprefix("aten::") in COPIES or any(word in name.lower() for word in DEVICE_COPIES)
