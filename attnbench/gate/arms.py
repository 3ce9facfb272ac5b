"""How are two forms of one backend timed against each other? In fresh processes, in rounds that interleave them.

An arm is a backend from a folder of backends (a worktree of a revision). A group of processes, one for each arm,
is started anew, goes through the cases in an order of its own, and is ended: what a process drew by chance (its
memory layout) differs from group to group, so it can be told from what the code does.
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
from attnbench.sweep.attempt import Attempt, Protocol, time_together
from attnbench.sweep.executors import WorkerProcess
from attnbench.sweep.lanes import Lane
from attnbench.sweep.limits import default_memory_limit_bytes
from attnbench.sweep.reference_worker import Oracle
from attnbench.sweep.result import Result
from attnbench.sweep.suite import Planned

ROUNDS = 20
CASE_SECONDS = 2.0  # of timing, an arm, a case and a group


@dataclass(frozen=True)
class Arm:
    """One form of a backend: `backend` by name in `folder` (the bundled one: None), or path/to/file.py:function.

    `slower_by` is the share by which each of its calls is made slower: 0.05 for 5 %.
    """

    name: str
    backend: str
    folder: Path | None = None
    slower_by: float = 0.0


@dataclass(frozen=True)
class Ran:
    """What one arm came to on one case in one group of processes."""

    arm: str
    group: int
    result: Result


class Track:
    """Where arms run: the device, the process that knows the right answers, and what it has worked out so far."""

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

    def __enter__(self) -> Track:
        with ExitStack() as ending:
            scratch = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-")))
            self._oracle = Oracle(
                WorkerProcess(self.device, threads=self._threads),
                scratch,
                timeout_s=self._protocol.timeout_s,
                memory_limit_bytes=self._limit,
            )
            ending.callback(self._oracle.stop)
            found = self._oracle.ask("environment")
            self.environment, self.key = found["fingerprint"], found["key"]
            self._ending = ending.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()

    def run(self, planned: Sequence[Planned], arms: Sequence[Arm], group: int, seed: int) -> Iterator[Ran]:
        """One group: a fresh process for each arm, every case judged in each and timed in interleaved rounds.

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
    ) -> Iterator[Ran]:
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
        taken_up = time.monotonic()
        for arm, lane in zip(arms, lanes, strict=True):
            attempt = Attempt(
                lane,
                replace(blank, backend=arm.backend),
                self._protocol,
                partial(self._oracle.answer, plan.case, seed, blank.distribution),
                taken_up,
            )
            attempt.judge()
            attempts.append(attempt)
        if all(attempt.result is None for attempt in attempts):
            share_pace(attempts)
            results = list(time_together(attempts, self._order))
        else:
            results = [_not_timed(attempt) for attempt in attempts]
        for arm, result in zip(arms, results, strict=True):
            yield Ran(arm.name, group, result)


def share_pace(attempts: Sequence[Attempt]) -> None:
    """Time all arms by the slowest one's pace: means of unlike numbers of calls have unlike minima."""
    common = {}
    for which in attempts[0].paces:
        common[which] = max((attempt.paces[which] for attempt in attempts), key=lambda pace: pace.call_ms)
    for attempt in attempts:
        attempt.keep_pace(common)
    rounds = min(attempt.rounds for attempt in attempts)
    for attempt in attempts:
        attempt.rounds = rounds


def _not_timed(attempt: Attempt) -> Result:
    """The outcome where another arm has none that could be timed beside it."""
    attempt.leave_untimed("the arm beside it has nothing to time")
    assert attempt.result is not None
    attempt.release()
    return attempt.result
