"""How is a suite swept? Every case judged on every backend, the right ones timed in interleaved rounds."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.backend import Backend
from attnbench.errors import UnknownBackend
from attnbench.measure import BLOCK_MS, commit_label
from attnbench.problem import Case
from attnbench.sweep import events
from attnbench.sweep.case_run import Attempt, Protocol, joined, time_together
from attnbench.sweep.executors import InProcess, WorkerProcess
from attnbench.sweep.limits import default_memory_limit_bytes
from attnbench.sweep.reference_worker import Oracle
from attnbench.sweep.result import Result
from attnbench.sweep.slots import Lane, make_lanes
from attnbench.sweep.step_errors import UNKNOWN, Fault
from attnbench.sweep.store import Store

if TYPE_CHECKING:
    from attnbench.sweep.suite import Planned

UNWRITTEN_S = 30.0  # work beyond this is timed and written before further backends are judged

Tell = Callable[[events.Event], None]


def run_sweep(
    planned: Sequence[Planned],
    backends: Sequence[str | Callable[..., Any] | Backend],
    *,
    device: str = "auto",
    out: str | Path | None = None,
    suite: str = "",
    seed: int = 0,
    distribution: str = "randn",
    contract: str | None = None,
    folder: Path | None = None,
    timeout_s: float = 300.0,
    memory_limit_bytes: int | None = None,
    resume: bool = False,
    rounds: int = 10,
    block_ms: float = BLOCK_MS,
    case_seconds: float = 3.0,
    processes: int = 1,
    on_event: Tell | None = None,
) -> list[Result]:
    """Run every case on every backend; the results, those that were there before included.

    Names and `path/to/file.py:function` run in a worker each, callables in this process. `folder` takes the
    bundled backends from elsewhere. With `out`, each result is on the disk as soon as it is known, and
    `resume` runs only what is missing there. Workers are started anew `processes` times a case, so that what a
    process drew by chance shows in the spread. Raises UnknownBackend and StoreError before anything is run.
    """
    device = _device(device)
    limit = memory_limit_bytes
    if limit is None and not device.startswith("cuda"):
        limit = default_memory_limit_bytes()
    lanes = make_lanes(backends, device, folder=folder, contract=contract, memory_limit_bytes=limit)
    apart = not lanes or any(not lane.in_process for lane in lanes)
    protocol = Protocol(timeout_s, rounds, block_ms, case_seconds, processes)
    with ExitStack() as ending:
        for lane in lanes:
            ending.callback(lane.stop)
        store = None if out is None else Store(out)
        kept: list[Result] = []
        tell = on_event or _tell_nobody
        if store is not None:
            if message := ending.enter_context(store.writing(resume)):
                tell(events.Notice(message))
            kept = store.read()
            scratch = store.references_folder
            ending.callback(shutil.rmtree, scratch, ignore_errors=True)
        else:
            scratch = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-")))
        executor = WorkerProcess(device) if apart else InProcess(device)
        oracle = Oracle(executor, scratch, timeout_s=timeout_s, memory_limit_bytes=limit)
        ending.callback(oracle.stop)
        sweep = _Sweep(lanes, oracle, protocol, store, tell, device)
        return sweep.run(planned, kept, suite, seed, distribution)


class _Sweep:
    """One run of a sweep: what its steps share."""

    def __init__(
        self,
        lanes: list[Lane],
        oracle: Oracle,
        protocol: Protocol,
        store: Store | None,
        tell: Tell,
        device: str,
    ) -> None:
        self._lanes, self._oracle, self._protocol = lanes, oracle, protocol
        self._store, self._tell, self._device = store, tell, device
        self._environment: dict[str, Any] = {}
        self._order = random.Random()  # not seeded: two runs must not share an order

    def run(
        self, planned: Sequence[Planned], kept: list[Result], suite: str, seed: int, distribution: str
    ) -> list[Result]:
        began = time.monotonic()
        todo, results = _missing(planned, self._lanes, kept, seed, distribution)
        rows = sum(len(lanes) for _, lanes in todo)
        if rows:
            self._start()
        names = tuple(lane.name for lane in self._lanes)
        machine = self._environment.get("machine", "")
        self._tell(events.SweepStarted(rows, len(results), self._device, machine, names))
        done = 0
        for index, (plan, lanes) in enumerate(todo, start=1):
            self._tell(events.CaseStarted(plan.case.id, index, len(todo)))
            blank = self._blank(plan, suite, seed, distribution)
            for result in self._one_case(plan.case, blank, lanes):
                if self._store is not None:
                    self._store.append(result)
                results.append(result)
                done += 1
                self._tell(events.Finished(result, done, rows))
        self._tell(events.SweepFinished(rows, time.monotonic() - began))
        return results

    def _start(self) -> None:
        """Load every backend side by side, and learn where we are."""
        self._oracle.start()
        for lane in self._lanes:
            lane.start()
        found = self._oracle.ask("environment")
        fingerprint, key = found["fingerprint"], found["key"]
        if self._store is not None and key not in self._store.environments():
            self._store.add_environment(key, {**fingerprint, "roofs": self._oracle.ask("roofs")})
        commit = commit_label(fingerprint["git"])
        self._environment = {"machine": fingerprint["machine"], "environment": key, "commit": commit}
        for lane in self._lanes:
            try:
                lane.ready()
            except Fault as fault:
                if fault.status == UNKNOWN:
                    raise UnknownBackend(fault.reason) from fault

    def _blank(self, plan: Planned, suite: str, seed: int, distribution: str) -> Result:
        """The row of a case before anything is known of a backend."""
        case = plan.case
        directions = ("fwd", "bwd") if case.needs_backward else ("fwd",)
        return Result(
            case=case.to_json(),
            case_id=case.id,
            backend="",
            status="error",
            suite=suite,
            group=plan.group,
            seed=seed,
            distribution=distribution,
            least_peak_bytes=case.least_peak_bytes,
            flops={d: case.flops(d) for d in directions},  # type: ignore[arg-type]
            least_bytes={d: case.least_bytes(d) for d in directions},  # type: ignore[arg-type]
            pairs=case.pairs,
            device=self._device,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            **self._environment,
        )

    def _one_case(self, case: Case, blank: Result, lanes: list[Lane]) -> Iterator[Result]:
        """Judge on every lane, time together those that are right; rows come as soon as they are known."""
        for lane in lanes:
            lane.start()  # those that died come back side by side, before anything is timed
        reference = partial(self._oracle.answer, case, blank.seed, blank.distribution)
        waiting: list[Attempt] = []
        taken_up = began = time.monotonic()
        for lane in lanes:
            attempt = Attempt(lane, replace(blank, backend=lane.name), self._protocol, reference, taken_up)
            attempt.judge()
            status, reason = (attempt.result.status, attempt.result.reason) if attempt.result else ("ok", "")
            self._tell(events.Judged(case.id, lane.name, status, reason))
            if attempt.result is not None:
                yield attempt.result
                attempt.release()
                continue
            waiting.append(attempt)
            ahead_s = self._protocol.processes * sum(a.rounds * a.seconds_a_round for a in waiting)
            if time.monotonic() - began + ahead_s > UNWRITTEN_S:
                yield from self._time_in_processes(waiting)
                waiting, began = [], time.monotonic()
        yield from self._time_in_processes(waiting)
        self._oracle.forget(case, blank.seed, blank.distribution)

    def _time_in_processes(self, attempts: list[Attempt]) -> Iterator[Result]:
        """Time together, and again in as many fresh processes as asked for; callables stay in this one."""
        if self._protocol.processes == 1:
            yield from time_together(attempts, self._order)  # each row as soon as it is known
            return
        results = list(time_together(attempts, self._order))
        for process in range(1, self._protocol.processes):
            again: list[tuple[int, Attempt]] = []
            for index, (attempt, result) in enumerate(zip(attempts, results, strict=True)):
                if result.samples_ms and not attempt.lane.in_process:
                    attempt.lane.stop()
                    attempt.lane.start()
                    again.append(
                        (index, Attempt(attempt.lane, attempt.blank, self._protocol, attempt.reference))
                    )
            for index, attempt in again:
                attempt.judge()
                if attempt.paces:
                    attempt.keep_pace(attempts[index].paces)
            timed = list(time_together([attempt for _, attempt in again], self._order))
            for (index, _), result in zip(again, timed, strict=True):
                results[index] = joined(results[index], result, process)
        yield from results


def _missing(
    planned: Sequence[Planned], lanes: list[Lane], kept: list[Result], seed: int, distribution: str
) -> tuple[list[tuple[Planned, list[Lane]]], list[Result]]:
    """What is still to be run, each question once; and the results that are there, of this plan or not."""
    seen = {result.key for result in kept}
    todo = []
    for plan in planned:
        lacking = [lane for lane in lanes if (plan.case.id, lane.name, seed, distribution) not in seen]
        seen |= {(plan.case.id, lane.name, seed, distribution) for lane in lacking}
        if lacking:
            todo.append((plan, lacking))
    return todo, list(kept)


def _device(device: str) -> str:
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _tell_nobody(event: events.Event) -> None:
    pass
