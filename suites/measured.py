"""What comes of one case on one backend in this process? Judged first; timed by attnbench's clock if it is right."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from attnbench.measure import pin_threads
from attnbench.problem import Case, make_inputs
from attnbench.sweep import reference_files
from attnbench.sweep.case_run import Attempt, Protocol
from attnbench.sweep.executors import InProcess
from attnbench.sweep.result import Result
from attnbench.sweep.slots import Lane
from attnbench.sweep.suite import Planned


class Measurements:
    """The backends of one session, loaded once; `of` gives the Result of one case on one of them.

    The last result is kept, so that the directions of a case are not measured twice. `folder` holds the float64
    answers of the case in hand.
    """

    def __init__(self, device: str, folder: Path, seed: int = 0) -> None:
        self._device, self._folder, self._seed = device, folder, seed
        self._lanes: dict[str, Lane] = {}
        self._last: tuple[tuple[str, str], Result] | None = None
        if not device.startswith("cuda"):
            pin_threads()

    def of(self, plan: Planned, backend: str, protocol: Protocol) -> Result:
        """Refused, unavailable, wrong, or right with samples: what `attnbench run` would store."""
        key = (plan.case.id, backend)
        if self._last is None or self._last[0] != key:
            self._last = (key, self._measure(plan, backend, protocol))
        return self._last[1]

    def close(self) -> None:
        """Let go of every backend."""
        for lane in self._lanes.values():
            lane.stop()

    def _measure(self, plan: Planned, backend: str, protocol: Protocol) -> Result:
        lane = self._lanes.setdefault(backend, Lane(backend, InProcess(self._device), backend))
        attempt = Attempt(lane, self._blank(plan, backend), protocol, partial(self._reference, plan.case))
        attempt.judge()
        for _ in range(attempt.rounds):
            if attempt.result is None:
                attempt.time_round(position=0)
        attempt.finish()
        attempt.release()
        assert attempt.result is not None
        return attempt.result

    def _blank(self, plan: Planned, backend: str) -> Result:
        case = plan.case
        directions = ("fwd", "bwd") if case.needs_backward else ("fwd",)
        return Result(
            case=case.to_json(),
            case_id=case.id,
            backend=backend,
            status="error",
            group=plan.group,
            seed=self._seed,
            least_peak_bytes=case.least_peak_bytes,
            flops={d: case.flops(d) for d in directions},  # type: ignore[arg-type]
            device=self._device,
        )

    def _reference(self, case: Case, contract: str) -> str:
        """The file with the right answer of the case in hand; those of the cases before it are removed."""
        from attnbench.judge import make_reference

        path = reference_files.path_of(self._folder, case, self._seed, "randn", contract)
        if not path.exists():
            others = {
                reference_files.path_of(self._folder, case, self._seed, "randn", c)
                for c in ("flash", "dense")
            }
            for old in set(self._folder.glob("*.npz")) - others:
                old.unlink()
            inputs = make_inputs(case, self._seed, self._device)
            reference_files.save(path, make_reference(inputs, contract, self._seed))
        return str(path)


def seconds_of(result: Result, direction: str) -> list[float]:
    """Every sample of a direction, of all rounds, in seconds a call; empty where nothing was timed."""
    return [ms / 1e3 for block in result.samples_ms.get(direction, ()) for ms in block]


def extra_info(result: Result, direction: str, seconds: Sequence[float]) -> dict[str, Any]:
    """What stands beside the times in pytest-benchmark's JSON: JSON values, units in the names."""
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


def verdict(result: Result, suite: str) -> str:
    """Why a case failed, for the person: the reason, each tensor's error, and how to see it again."""
    lines = [f"{result.backend} is {result.status} on {result.case_id}: {result.reason}"]
    for tensor, error in result.errors.items():
        lines.append(f"  {tensor}: {error.get('over_budget')} of the budget, worst at {error.get('worst')}")
    lines += [f"  {note}" for note in result.notes]
    return "\n".join(
        [*lines, f"  again: attnbench run {suite} --case {result.case_id} --backend {result.backend}"]
    )
