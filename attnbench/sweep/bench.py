"""The steps of one case on one backend: admit, judge, time in blocks, re-check.

A Bench holds one backend and at most one case. Its steps take and return JSON values, so that a worker can do them;
what they raise, `worker.do_step` turns into a StepError.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch

from attnbench.backend import Backend, Gradients, Output, Prepared, function_backend, resolve
from attnbench.backend.differentiable import finds_contract
from attnbench.device import work_on
from attnbench.judge import judge, reference_files
from attnbench.judge.contracts import explains
from attnbench.measure import (
    Clock,
    GpuState,
    Pace,
    allocated_by,
    clock_for,
    find_pace,
    fingerprint,
    fingerprint_key,
    measure_memory,
    measure_roofs,
    other_clocks,
    pin_threads,
    steady,
    time_block,
)
from attnbench.measure.kernels import attention_kernels, family_mismatch, gpu_kernels
from attnbench.measure.timing import slowed
from attnbench.problem import Case, Inputs, make_inputs
from attnbench.sweep.limits import limit_memory
from attnbench.sweep.refilled import KEPT, keeps_its_answer, last_row
from attnbench.sweep.step_errors import StepError, one_line

Phase = Callable[[str], None]
CACHE_SHARE = 32  # 1/32 of the GPU's memory may stay in the allocator while other backends run


@dataclass
class _Open:
    """The case in hand."""

    case: Case
    inputs: Inputs
    prepared: Prepared
    checksum: str
    reference: Any
    output: Output | None = None
    gradients: Gradients | None = None
    prepare_ms: dict[str, float] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)  # if the first run measured it
    paces: dict[str, Pace] | None = None
    block_ms: dict[str, float] = field(default_factory=dict)  # median of the last block by direction
    host_ms: dict[str, float] = field(default_factory=dict)  # on a GPU: of the host, to enqueue a call


class Bench:
    """The steps; `phase` is called with what is being done, so that a hang or a crash can be located."""

    def __init__(self, device: str, phase: Phase = lambda name: None, clock: Clock | None = None) -> None:
        self._device = work_on(device)
        self._phase = phase
        self._clock = clock
        self._backend: Backend | None = None
        self._slower_by = 0.0
        self._gpu: GpuState | None = None
        self._on: _Open | None = None
        self._has_answered = False

    def pin(self) -> dict[str, Any]:
        """Pin this process to its cores and count torch's threads."""
        return {"threads": pin_threads()}

    def open(
        self,
        backend: str | Callable[..., Any] | Backend,
        folder: str | None = None,
        contract: str | None = None,
        slower_by: float = 0.0,
        process_time: bool = False,
    ) -> dict[str, Any]:
        """Load the backend and make the clock; returns the backend's description.

        `slower_by` makes each timed call slower by this share, to calibrate a gate; `process_time` counts this
        process's processor time instead of elapsed time.
        """
        self._phase("loading the backend")
        if isinstance(backend, str):
            loaded = resolve(backend, Path(folder) if folder else None, contract)
        else:
            loaded = backend if isinstance(backend, Backend) else function_backend(backend, contract=contract)
        self._backend, self._slower_by = loaded, slower_by
        self._clock = self._clock or clock_for(self._device, process_time)
        self._gpu = GpuState.of(self._device) if self._device.startswith("cuda") else None
        return {
            "name": loaded.name,
            "version": loaded.version(),
            "contract": contract or loaded.capabilities.contract,
            "finds_contract": finds_contract(loaded, contract),
            "timed": loaded.capabilities.timed,
            "compiles": loaded.capabilities.compiles,
            "clock": self._clock.name,
        }

    def settle(self, memory_limit_bytes: int | None) -> dict[str, Any]:
        """Everything is loaded: limit the memory, and freeze what exists for the garbage collector."""
        _wake_torch(self._device)
        limit_memory(memory_limit_bytes, self._device)
        if self._backend is not None:  # the reference worker has none
            self._backend.limit_memory(memory_limit_bytes, self._device)
        gc.collect()
        gc.freeze()
        return {}

    def environment(self, folder: str = ".") -> dict[str, Any]:
        """The fingerprint and its key."""
        environment = fingerprint(self._device, folder)
        return {"key": fingerprint_key(environment), "fingerprint": environment}

    def roofs(self) -> dict[str, Any]:
        """The rates that this machine can reach at best."""
        self._phase("measuring the machine's roofs")
        return measure_roofs(self._device)

    def reference(
        self, case: dict[str, Any], seed: int, distribution: str, contract: str, path: str
    ) -> dict[str, Any]:
        """Compute the right answer of a case in float64 and write it to `path`."""
        self._phase("computing the reference in float64")
        start = time.perf_counter()
        inputs = make_inputs(Case.from_json(case), seed, self._device, distribution)
        reference_files.save(Path(path), reference_files.reference_of(inputs, contract, seed))
        return {"seconds": time.perf_counter() - start}

    def warm(self, case: dict[str, Any], seed: int, distribution: str) -> dict[str, Any]:
        """Prepare a case that the backend takes, and drop it: what it compiles lies in the compilers' caches."""
        self._phase("compiling")
        problem = Case.from_json(case)
        if self._opened.refuses(problem, self._device) is None:
            inputs = make_inputs(problem, seed, self._device, distribution)
            _once(self._opened.prepare(problem, inputs), inputs.dout)
            self._synchronise()
            del inputs
            self._collect()
        return {}

    def admit(self, case: dict[str, Any]) -> dict[str, Any]:
        """The reason why the backend refuses the case; None if it takes it."""
        self._phase("asking whether it takes the case")
        refusal = self._opened.refuses(Case.from_json(case), self._device)
        return {"refusal": None if refusal is None else refusal.reason}

    def judge(self, case: dict[str, Any], seed: int, distribution: str, reference: str) -> dict[str, Any]:
        """Prepare the case, run it and judge the answer; if it is right, measure memory and warm up until stable.

        The warm-up gives the paces that the blocks need.
        """
        self.release()
        self._phase("making the inputs")
        problem = Case.from_json(case)
        inputs = make_inputs(problem, seed, self._device, distribution)
        checksum = inputs.checksum()
        self._phase("prepare")
        start = time.perf_counter()
        prepared = self._opened.prepare(problem, inputs)
        prepare_ms = dict(prepared.prepare_ms)
        prepare_ms["other"] = max(0.0, (time.perf_counter() - start) * 1e3 - sum(prepare_ms.values()))
        self._on = on = _Open(problem, inputs, prepared, checksum, reference_files.load(Path(reference)))
        if not self._opened.capabilities.timed and self._has_answered:
            # An interpreter takes seconds: one run serves the verdict and the memory. Not the first run of a process,
            # which also loads libraries.
            self._phase("the first forward and backward, measuring memory")
            kept = _Kept(prepared)
            on.memory_bytes = self._memory(kept)
            on.output, on.gradients = kept.output, kept.gradients
        if on.output is None:
            self._phase("the first forward")
            on.output, prepare_ms["first_call"] = _timed(prepared.forward)
            if inputs.dout is not None:
                self._phase("the first backward")
                on.gradients, prepare_ms["first_backward"] = _timed(partial(prepared.backward, inputs.dout))
        self._has_answered = True
        on.prepare_ms = {k: round(v, 3) for k, v in prepare_ms.items()}
        return self._measured(self._verdict())

    def judge_again(self, reference: str, rejected_by: str) -> dict[str, Any]:
        """Judge the same answer by another contract's reference, which also has to explain the error; then as `judge`.

        `rejected_by` is the path of the reference that rejects it.
        """
        on, output = self._case, self._case.output
        on.reference = reference_files.load(Path(reference))
        judged = self._verdict()
        if judged["ok"] and output is not None:
            rejecting = reference_files.load(Path(rejected_by))
            judged["ok"] = explains(on.reference.contract, on.inputs, rejecting, output.out) is True
        return self._measured(judged)

    def _measured(self, judged: dict[str, Any]) -> dict[str, Any]:
        """The verdict, with memory and paces if it is right."""
        on = self._case
        judged |= {"kernel": on.prepared.kernel, "prepare_ms": on.prepare_ms}
        if judged["ok"]:
            judged["kernel"], judged["notes"] = self._proven_kernel()
            self._phase("measuring memory")
            judged["memory_bytes"] = on.memory_bytes or self._memory(on.prepared)
            judged["clock"] = on.prepared.clock  # empty: the clock of this process
            if self._opened.capabilities.timed:
                judged["paces"] = self._warm_up()
        self._free_cache()
        return judged

    def block(self, block_ms: float, paces: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
        """One block of samples per direction in milliseconds per call, and the involuntary context switches.

        On a GPU also the host's milliseconds to enqueue a call, and how many samples contain some of them.

        `paces` replace those of the warm-up, so that several runs average as many calls per sample.
        """
        on, clock = self._case, self._clock
        assert clock is not None
        if paces:
            on.paces = {name: Pace(**pace) for name, pace in paces.items()}
        assert on.paces is not None
        samples, switches, late = {}, 0, 0
        gpu: dict[str, Any] = {}
        for direction, pace in on.paces.items():
            self._phase(f"timing {direction}")
            take = partial(time_block, clock, self._call(direction), pace, block_ms)
            timed, state = steady(take, self._gpu, time.sleep)
            samples[direction] = [round(ms, 6) for ms in timed.samples_ms]
            on.block_ms[direction] = median(samples[direction])
            gpu |= {direction: state} if state else {}
            if timed.host_ms:
                on.host_ms[direction] = round(median(timed.host_ms), 6)
            late += timed.late
            switches += timed.involuntary_switches
            if direction == "fwd":
                on.output = timed.last
            else:
                on.gradients = timed.last
            del timed
        self._free_cache()
        more = {"gpu": gpu, "host_ms": dict(on.host_ms), "late": late}
        return {"samples_ms": samples, "involuntary_switches": switches} | {
            n: v for n, v in more.items() if v
        }

    def recheck(self) -> dict[str, Any]:
        """Judge what the last timed calls returned; on a GPU, also time by the other clocks."""
        self._phase("checking again after the timed loop")
        on = self._case
        before = last_row(on.output) if on.block_ms else None
        judged = self._verdict()
        if judged["ok"] and before is not None and keeps_its_answer(on.prepared, on.inputs, before):
            return judged | {"ok": False, "reason": KEPT}
        if judged["ok"] and self._device.startswith("cuda") and self._case.block_ms:
            self._phase("timing with a warm L2 and as a CUDA graph")
            free, _ = torch.cuda.mem_get_info(self._device)
            l2 = torch.cuda.get_device_properties(self._device).L2_cache_size
            times, notes = other_clocks(torch.cuda, on.prepared, on.inputs, on.block_ms, on.host_ms, l2, free)
            judged |= {"other_clocks_ms": times, "notes": notes}
        return judged

    def release(self) -> dict[str, Any]:
        """Free the case and its memory."""
        if self._on is not None:
            self._on.prepared.drop_graph()
            self._on = None
            self._collect()
        return {}

    def _collect(self) -> None:
        gc.collect()
        if self._device.startswith("cuda"):
            torch.cuda.empty_cache()

    @property
    def _opened(self) -> Backend:
        if self._backend is None:
            raise StepError("error", "no backend is open")
        return self._backend

    @property
    def _case(self) -> _Open:
        if self._on is None:
            raise StepError("error", "no case is open")
        return self._on

    def _call(self, direction: str) -> Callable[[], Any]:
        call = self._case.prepared.call(direction, self._case.inputs.dout)
        return slowed(call, self._slower_by, self._clock) if self._slower_by else call

    def _proven_kernel(self) -> tuple[str, list[str]]:
        """The kernel's name, on a GPU with the profiled kernels, and notes; StepError if they are of another family."""
        on = self._case
        if not self._device.startswith("cuda"):
            return on.prepared.kernel, []
        self._phase("looking at the kernels that run")
        names = on.prepared.kernels()
        if names is None:
            names = gpu_kernels(partial(_once, on.prepared, on.inputs.dout))
        family = self._opened.kernel_family
        mismatch = family_mismatch(names, family) if family else ""
        if mismatch:
            raise StepError("error", mismatch)
        shown = ": ".join(part for part in (on.prepared.kernel, ", ".join(attention_kernels(names))) if part)
        return shown, [] if names else ["the profiler saw no kernel: which one ran is not proven"]

    def _memory(self, prepared: Prepared) -> dict[str, int]:
        return measure_memory(
            prepared,
            self._case.inputs.dout,
            self._device,
            self._gpu.process_bytes if self._gpu else lambda: None,
        )

    def _warm_up(self) -> dict[str, Any]:
        assert self._clock is not None
        paces = {}
        for direction in ("fwd", "bwd") if self._case.inputs.dout is not None else ("fwd",):
            self._phase(f"warming up {direction}")
            paces[direction] = find_pace(self._clock, self._call(direction))
        self._case.paces = paces
        return {name: pace.to_json() for name, pace in paces.items()}

    def _verdict(self) -> dict[str, Any]:
        on = self._case
        self._synchronise()
        self._phase("judging")
        output, gradients = on.output, on.gradients
        if not isinstance(output, Output) or not isinstance(output.out, torch.Tensor):
            raise StepError("error", f"forward gave {type(output).__name__}, not an Output holding a tensor")
        if on.inputs.checksum() != on.checksum:
            return {
                "ok": False,
                "reason": "changes its inputs in place",
                "errors": {},
                "error_over_budget": None,
            }
        verdict = judge(on.reference, output, gradients, on.inputs)
        if verdict.ok:  # a wrong answer may be judged again
            on.output = on.gradients = None
        return {
            "ok": verdict.ok,
            "reason": one_line(verdict.reason),
            "errors": {name: error.to_json() for name, error in verdict.errors.items()},
            "error_over_budget": verdict.error_over_budget,
        }

    def _free_cache(self) -> None:
        """Hold as little memory as possible while the other backends run."""
        self._case.prepared.drop_graph()
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()
            _, total = torch.cuda.mem_get_info(self._device)
            # A small cache stays: without it each block would start with allocations.
            if torch.cuda.memory_reserved(self._device) > total // CACHE_SHARE:
                torch.cuda.empty_cache()

    def _synchronise(self) -> None:
        if self._device.startswith("cuda"):
            torch.cuda.synchronize()


class _Kept(Prepared):
    """A prepared case whose answers are kept."""

    def __init__(self, prepared: Prepared) -> None:
        super().__init__()
        self._prepared = prepared
        self.output: Output | None = None
        self.gradients: Gradients | None = None

    def forward(self) -> Output:
        self.output = self._prepared.forward()
        return self.output

    def backward(self, dout: torch.Tensor) -> Gradients:
        self.gradients = self._prepared.backward(dout)
        return self.gradients

    def memory(self) -> dict[str, int] | None:
        return self._prepared.memory()

    def drop_graph(self) -> None:
        self._prepared.drop_graph()


def _wake_torch(device: str) -> None:
    """Start what torch starts once per process (autograd's engine, thread pools, profiler): no case pays for it."""
    x = torch.randn(64, 64, device=device, requires_grad=True)
    torch.autograd.grad((x @ x).softmax(-1).sum(), x)
    if not device.startswith("cuda"):
        allocated_by(lambda: x @ x)


def _once(prepared: Prepared, dout: torch.Tensor | None) -> None:
    prepared.forward()
    if dout is not None:
        prepared.backward(dout)


def _timed(call: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    returned = call()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return returned, (time.perf_counter() - start) * 1e3
