"""Time forms of one backend (arms) against each other: fresh processes, interleaved rounds.

An arm is a backend from a folder of backends, such as a worktree of a revision. A group of processes, one per arm,
is started, runs the cases in an order of its own, and ends: what is random per process (its memory layout) differs
between groups, which separates it from the effect of the code.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from attnbench.measure import BLOCK_MS, commit_label
from attnbench.sweep.case_run import CaseRun, TimingSettings, time_together
from attnbench.sweep.executors import WorkerProcess
from attnbench.sweep.limits import default_memory_limit_bytes
from attnbench.sweep.reference_worker import ReferenceWorker
from attnbench.sweep.result import Result
from attnbench.sweep.slots import WorkerSlot
from attnbench.sweep.suite import Planned

ROUNDS = 20
CASE_SECONDS = 2.0  # of timing, per arm, case and group


@dataclass(frozen=True)
class Arm:
    """One form of a backend: `backend` by name in `folder` (the bundled one: None), or path/to/file.py:function.

    `slower_by` is the share by which each of its calls is slowed: 0.05 for 5 %.
    """

    name: str
    backend: str
    folder: Path | None = None
    slower_by: float = 0.0


@dataclass(frozen=True)
class ArmResult:
    """The result of one arm on one case in one group of processes."""

    arm: str
    group: int
    result: Result


class ArmRunner:
    """Runs arms on a device, judged against the answers of one reference process; a context manager."""

    def __init__(
        self,
        device: str,
        *,
        threads: int | None = None,
        rounds: int = ROUNDS,
        block_ms: float = BLOCK_MS,
        timeout_s: float = 300.0,
    ) -> None:
        self.device = device
        self.environment: dict[str, Any] = {}
        self.key = ""
        self._threads = threads
        self._settings = TimingSettings(
            timeout_s=timeout_s, rounds=rounds, block_ms=block_ms, case_seconds=CASE_SECONDS
        )
        self._limit = None if device.startswith("cuda") else default_memory_limit_bytes()
        self._order = random.Random()  # not seeded: two runs must not share an order

    def __enter__(self) -> ArmRunner:
        with ExitStack() as ending:
            scratch = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-")))
            self._references = ReferenceWorker(
                WorkerProcess(self.device, threads=self._threads),
                scratch,
                timeout_s=self._settings.timeout_s,
                memory_limit_bytes=self._limit,
            )
            ending.callback(self._references.stop)
            environment = self._references.ask("environment")
            self.environment, self.key = environment["fingerprint"], environment["key"]
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def run(
        self, planned: Sequence[Planned], arms: Sequence[Arm], group: int, seed: int
    ) -> Iterator[ArmResult]:
        """One group: a fresh process per arm; every case judged in each and timed in interleaved rounds.

        A case that an arm cannot answer, or answers wrongly, is judged in all and timed in none.
        """
        slots = [
            WorkerSlot(
                arm.name,
                WorkerProcess(self.device, threads=self._threads),
                arm.backend,
                folder=arm.folder,
                memory_limit_bytes=self._limit,
                slower_by=arm.slower_by,
                process_time=self._threads == 1,
            )
            for arm in arms
        ]
        try:
            for slot in slots:
                slot.start()
            cases = list(planned)
            self._order.shuffle(cases)
            for plan in cases:
                yield from self._one_case(plan, arms, slots, group, seed)
        finally:
            for slot in slots:
                slot.stop()

    def _one_case(
        self, plan: Planned, arms: Sequence[Arm], slots: Sequence[WorkerSlot], group: int, seed: int
    ) -> Iterator[ArmResult]:
        blank = Result.blank(
            plan.case,
            group=plan.group,
            seed=seed,
            device=self.device,
            machine=self.environment.get("machine", ""),
            environment=self.key,
            commit=commit_label(self.environment["git"]),
        )
        runs = []
        started = time.monotonic()
        for arm, slot in zip(arms, slots, strict=True):
            run = CaseRun(
                slot,
                replace(blank, backend=arm.backend),
                self._settings,
                partial(self._references.answer, plan.case, seed, blank.distribution),
                started,
            )
            run.judge()
            runs.append(run)
        if all(run.result is None for run in runs):
            share_pace(runs)
            results = list(time_together(runs, self._order))
        else:
            results = [_not_timed(run) for run in runs]
        for arm, result in zip(arms, results, strict=True):
            yield ArmResult(arm.name, group, result)


def share_pace(runs: Sequence[CaseRun]) -> None:
    """Give all arms the slowest one's pace: means over different numbers of calls have different minima."""
    common = {}
    for which in runs[0].paces:
        common[which] = max((run.paces[which] for run in runs), key=lambda pace: pace.call_ms)
    for run in runs:
        run.use_paces(common)
    rounds = min(run.rounds for run in runs)
    for run in runs:
        run.rounds = rounds


def _not_timed(run: CaseRun) -> Result:
    """The result of an arm if another arm has nothing to time beside it."""
    run.leave_untimed("the arm beside it has nothing to time")
    assert run.result is not None
    run.release()
    return run.result
