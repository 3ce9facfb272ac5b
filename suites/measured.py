"""One case on one backend in this process: judged, and timed by attnbench's clock if it is right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from attnbench.measure import pin_threads
from attnbench.problem import Case
from attnbench.sweep.case_run import CaseRun, TimingSettings
from attnbench.sweep.executors import InProcess
from attnbench.sweep.reference_worker import ReferenceWorker
from attnbench.sweep.result import Result
from attnbench.sweep.slots import WorkerSlot
from attnbench.sweep.suite import Planned

DISTRIBUTION = "randn"


class Measurements:
    """The backends of one session, each loaded once; `of` returns the Result of one case on one of them.

    The last result is kept, so that the directions of a case share one measurement. `folder` holds the float64
    answers of the current case.
    """

    def __init__(self, device: str, folder: Path, seed: int = 0) -> None:
        self._device, self._seed = device, seed
        self._references = ReferenceWorker(InProcess(device), folder, timeout_s=TimingSettings.timeout_s)
        self._slots: dict[str, WorkerSlot] = {}
        self._case: Case | None = None
        self._last: tuple[tuple[str, str], Result] | None = None
        if not device.startswith("cuda"):
            pin_threads()

    def of(self, plan: Planned, backend: str, settings: TimingSettings) -> Result:
        """Refused, unavailable, wrong, or right with samples: what `attnbench run` would store."""
        key = (plan.case.id, backend)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._measure(plan, backend, settings))
        return self._last[1]

    def close(self) -> None:
        """Unload every backend."""
        for slot in self._slots.values():
            slot.stop()
        self._references.stop()

    def _measure(self, plan: Planned, backend: str, settings: TimingSettings) -> Result:
        if self._case is not None and self._case != plan.case:
            self._references.forget(self._case, self._seed, DISTRIBUTION)
        self._case = plan.case
        slot = self._slots.setdefault(backend, WorkerSlot(backend, InProcess(self._device), backend))
        fields = {"backend": backend, "group": plan.group, "seed": self._seed, "device": self._device}
        blank = Result.blank(plan.case, distribution=DISTRIBUTION, **fields)
        reference = partial(self._references.answer, plan.case, self._seed, DISTRIBUTION)
        run = CaseRun(slot, blank, settings, reference)
        run.judge()
        for _ in range(run.rounds):
            if run.result is None:
                run.time_round(position=0)
        run.finish()
        run.release()
        assert run.result is not None
        return run.result


def seconds_of(result: Result, direction: str) -> list[float]:
    """Every sample of a direction, of all rounds, in seconds per call; empty if nothing was timed."""
    return [ms / 1e3 for block in result.samples_ms.get(direction, ()) for ms in block]


def extra_info(result: Result, direction: str, seconds: Sequence[float]) -> dict[str, Any]:
    """The fields beside the times in pytest-benchmark's JSON: JSON values, units in the names."""
    tflops = result.flops[direction] / median(seconds) / 1e12
    return {
        "id": result.case_id,
        "backend": result.backend,
        "backend_version": result.backend_version,
        "kernel": result.kernel,
        "direction": direction,
        "group": result.group,
        "tflops": float(f"{tflops:.6g}"),
        "peak_bytes": result.memory_bytes.get(f"{direction}_peak"),
        "least_peak_bytes": result.least_peak_bytes,
        "error_over_budget": result.error_over_budget,
        "clock": result.clock,
        "calls_per_sample": result.calls_per_sample[direction],
        "samples_a_round": [len(block) for block in result.samples_ms[direction]],
        "seed": result.seed,
    }


def failure_message(result: Result, suite: str) -> str:
    """Why a case failed: the reason, each tensor's error, and the command that reproduces it."""
    lines = [f"{result.backend} is {result.status} on {result.case_id}: {result.reason}"]
    for tensor, error in result.errors.items():
        lines.append(f"  {tensor}: {error.get('over_budget')} of the budget, worst at {error.get('worst')}")
    lines += [f"  {note}" for note in result.notes]
    return "\n".join(
        [*lines, f"  again: attnbench run {suite} --case {result.case_id} --backend {result.backend}"]
    )
