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
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from attnbench.measure import BLOCK_MS, commit_label
from attnbench.sweep.case_run import Attempt, Protocol, time_together
from attnbench.sweep.executors import WorkerProcess
from attnbench.sweep.limits import default_memory_limit_bytes
from attnbench.sweep.reference_worker import Oracle
from attnbench.sweep.result import Result
from attnbench.sweep.slots import Lane
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
        self._protocol = Protocol(
            timeout_s=timeout_s, rounds=rounds, block_ms=block_ms, case_seconds=CASE_SECONDS
        )
        self._limit = None if device.startswith("cuda") else default_memory_limit_bytes()
        self._order = random.Random()  # not seeded: two runs must not share an order

    def __enter__(self) -> ArmRunner:
        with ExitStack() as ending:
            scratch = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-")))
            self._oracle = Oracle(
                WorkerProcess(self.device, threads=self._threads),
                scratch,
                timeout_s=self._protocol.timeout_s,
                memory_limit_bytes=self._limit,
            )
            ending.callback(self._oracle.stop)
            environment = self._oracle.ask("environment")
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
        lanes = [
            Lane(
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
            for lane in lanes:
                lane.start()
            cases = list(planned)
            self._order.shuffle(cases)
            for plan in cases:
                yield from self._one_case(plan, arms, lanes, group, seed)
        finally:
            for lane in lanes:
                lane.stop()

    def _one_case(
        self, plan: Planned, arms: Sequence[Arm], lanes: Sequence[Lane], group: int, seed: int
    ) -> Iterator[ArmResult]:
        blank = Result(
            case=plan.case.to_json(),
            case_id=plan.case.id,
            backend="",
            status="error",
            group=plan.group,
            seed=seed,
            device=self.device,
            machine=self.environment.get("machine", ""),
            environment=self.key,
            commit=commit_label(self.environment["git"]),
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        attempts = []
        started = time.monotonic()
        for arm, lane in zip(arms, lanes, strict=True):
            attempt = Attempt(
                lane,
                replace(blank, backend=arm.backend),
                self._protocol,
                partial(self._oracle.answer, plan.case, seed, blank.distribution),
                started,
            )
            attempt.judge()
            attempts.append(attempt)
        if all(attempt.result is None for attempt in attempts):
            share_pace(attempts)
            results = list(time_together(attempts, self._order))
        else:
            results = [_not_timed(attempt) for attempt in attempts]
        for arm, result in zip(arms, results, strict=True):
            yield ArmResult(arm.name, group, result)


def share_pace(attempts: Sequence[Attempt]) -> None:
    """Give all arms the slowest one's pace: means over different numbers of calls have different minima."""
    common = {}
    for which in attempts[0].paces:
        common[which] = max((attempt.paces[which] for attempt in attempts), key=lambda pace: pace.call_ms)
    for attempt in attempts:
        attempt.keep_pace(common)
    rounds = min(attempt.rounds for attempt in attempts)
    for attempt in attempts:
        attempt.rounds = rounds


def _not_timed(attempt: Attempt) -> Result:
    """The result of an arm if another arm has nothing to time beside it."""
    attempt.leave_untimed("the arm beside it has nothing to time")
    assert attempt.result is not None
    attempt.release()
    return attempt.result
