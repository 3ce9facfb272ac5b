"""The sweep: judge every case on every backend, time the right ones in interleaved rounds, store each row."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.backend import Backend
from attnbench.device import resolve_device
from attnbench.errors import UnknownBackend
from attnbench.measure import BLOCK_MS, commit_label
from attnbench.problem import Case
from attnbench.statuses import PASSING
from attnbench.sweep import events
from attnbench.sweep.case_run import CaseRun, TimingSettings, join_results, time_together
from attnbench.sweep.executors import InProcess, WorkerProcess
from attnbench.sweep.limits import default_memory_limit_bytes
from attnbench.sweep.reference_worker import ReferenceWorker
from attnbench.sweep.result import Result
from attnbench.sweep.slots import WorkerSlot, make_slots
from attnbench.sweep.starting import CAN_FORK, ForkServer
from attnbench.sweep.step_errors import UNKNOWN_BACKEND, StepError
from attnbench.sweep.store import Store

if TYPE_CHECKING:
    from attnbench.sweep.suite import Planned

JUDGING_SHARE = 0.5  # of a case's time, for the progress line
UNWRITTEN_S = 30.0  # work beyond this is timed and written before further backends are judged

OnEvent = Callable[[events.Event], None]


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
    keep_failures: bool = False,
    rounds: int = 10,
    block_ms: float = BLOCK_MS,
    case_seconds: float = 3.0,
    processes: int = 1,
    on_event: OnEvent | None = None,
) -> list[Result]:
    """Run every case on every backend; returns the results, those already stored included.

    Each name and `path/to/file.py:function` runs in its own worker, callables in this process. `folder` replaces the
    folder of bundled backends. With `out`, each result is on the disk as soon as it is known, and `resume` runs only
    what is missing there or ended in a status that may pass (crashed, error, timeout, unavailable), the latter not with
    `keep_failures`. Workers are restarted `processes` times per case, so that the spread includes what differs
    by chance between processes. Raises UnknownBackend, StoreError and, for a device that is not here,
    AttnbenchError before anything is run.
    """
    device = resolve_device(device)
    limit = memory_limit_bytes
    if limit is None and not device.startswith("cuda"):
        limit = default_memory_limit_bytes()
    is_plain = CAN_FORK and device == "cpu" and processes == 1 and folder is None
    server = ForkServer() if is_plain else None
    cases = [plan.case for plan in planned]
    slots = make_slots(
        backends,
        device,
        folder=folder,
        contract=contract,
        memory_limit_bytes=limit,
        cases=cases,
        server=server,
    )
    has_workers = not slots or any(not slot.in_process for slot in slots)
    settings = TimingSettings(timeout_s, rounds, block_ms, case_seconds, processes)
    with ExitStack() as ending:
        if server is not None:
            ending.callback(server.close)
        for slot in slots:
            ending.callback(slot.stop)
        store = None if out is None else Store(out)
        stored: list[Result] = []
        tell = on_event or _ignore
        if store is not None:
            if message := ending.enter_context(store.writing(resume)):
                tell(events.Notice(message))
            stored = store.read()
            scratch = store.references_folder
            ending.callback(shutil.rmtree, scratch, ignore_errors=True)
        else:
            scratch = Path(ending.enter_context(tempfile.TemporaryDirectory(prefix="attnbench-")))
        executor = WorkerProcess(device, server=server) if has_workers else InProcess(device)
        references = ReferenceWorker(executor, scratch, timeout_s=timeout_s, memory_limit_bytes=limit)
        ending.callback(references.stop)
        sweep = _Sweep(slots, references, settings, store, tell, device, server)
        again = frozenset() if keep_failures else PASSING
        return sweep.run(planned, stored, suite, seed, distribution, again)


class _Sweep:
    """The state of one sweep."""

    def __init__(
        self,
        slots: list[WorkerSlot],
        references: ReferenceWorker,
        settings: TimingSettings,
        store: Store | None,
        tell: OnEvent,
        device: str,
        server: ForkServer | None = None,
    ) -> None:
        self._slots, self._references, self._settings = slots, references, settings
        self._server = server
        self._store, self._tell, self._device = store, tell, device
        self._environment: dict[str, Any] = {}
        self._order = random.Random()  # not seeded: two runs must not share an order

    def run(
        self,
        planned: Sequence[Planned],
        stored: list[Result],
        suite: str,
        seed: int,
        distribution: str,
        again: frozenset[str],
    ) -> list[Result]:
        began = time.monotonic()
        done_before = [result for result in stored if result.status not in again]
        todo = _missing(planned, self._slots, done_before, seed, distribution)
        asked = {(plan.case.id, slot.name, seed, distribution) for plan, slots in todo for slot in slots}
        results = [result for result in stored if result.key not in asked]
        rows = sum(len(slots) for _, slots in todo)
        if rows:
            self._start()
            if not self._device.startswith("cuda"):
                self._compile(todo, seed, distribution)
        names = tuple(slot.name for slot in self._slots)
        machine = self._environment.get("machine", "")
        self._tell(events.SweepStarted(rows, len(results), self._device, machine, names))
        done = 0
        for index, (plan, slots) in enumerate(todo, start=1):
            self._tell(events.CaseStarted(plan.case.id, index, len(todo)))
            blank = Result.blank(
                plan.case,
                suite=suite,
                group=plan.group,
                seed=seed,
                distribution=distribution,
                device=self._device,
                **self._environment,
            )
            for result in self._one_case(plan.case, blank, slots):
                if self._store is not None:
                    self._store.append(result)
                results.append(result)
                done += 1
                self._tell(events.Finished(result, done, rows))
        self._tell(events.SweepFinished(rows, time.monotonic() - began))
        return results

    def _start(self) -> None:
        """Load all backends side by side and record the environment; UnknownBackend if one does not exist."""
        self._tell(events.Doing("loading the backends"))
        self._references.start()
        if self._server is not None and self._server.unfit:
            self._tell(
                events.Notice(f"each worker imports torch: none can be forked here ({self._server.unfit})")
            )
        for slot in self._slots:
            slot.start()
        environment = self._references.ask("environment")
        fingerprint, key = environment["fingerprint"], environment["key"]
        if self._store is not None and key not in self._store.environments():
            self._store.add_environment(key, {**fingerprint, "roofs": self._references.ask("roofs")})
        commit = commit_label(fingerprint["git"])
        self._environment = {"machine": fingerprint["machine"], "environment": key, "commit": commit}
        for slot in self._slots:
            try:
                slot.ready()
            except StepError as error:
                if error.status == UNKNOWN_BACKEND:
                    raise UnknownBackend(error.reason) from error

    def _compile(
        self, todo: Sequence[tuple[Planned, list[WorkerSlot]]], seed: int, distribution: str
    ) -> None:
        """Let backends that compile prepare each of their cases once, so that no case waits for a compiler later."""
        for slot in self._slots:
            if not slot.compiles:
                continue
            cases = [plan.case for plan, slots in todo if slot in slots]
            for index, case in enumerate(cases, start=1):
                self._tell(events.Doing(f"compiling {slot.name}, case {index} of {len(cases)}"))
                fields = {"case": case.to_json(), "seed": seed, "distribution": distribution}
                try:
                    slot.call("warm", self._settings.timeout_s, **fields)
                except StepError as error:  # judging the case meets it again, and makes it a result
                    if error.fatal:
                        break

    def _compile_beside(
        self, case: Case, blank: Result, slots: list[WorkerSlot], reference: Callable[[str], str]
    ) -> None:
        """Let the backends of a case compile it side by side, while the right answers are computed.

        On a GPU, case by case: its minutes are few, and the first rows must not wait for the compilers of all cases.
        What fails here fails again when it is judged, and is a result then.
        """
        fields = {"case": case.to_json(), "seed": blank.seed, "distribution": blank.distribution}

        def warm(slot: WorkerSlot) -> None:
            with suppress(StepError):
                slot.call("warm", self._settings.timeout_s, **fields)

        compiling = [slot for slot in slots if slot.compiles and not slot.in_process]
        with ThreadPoolExecutor(max(1, len(compiling))) as side_by_side:
            for slot in compiling:
                side_by_side.submit(warm, slot)
            try:
                for contract in sorted({slot.contract for slot in slots if slot.contract}):
                    with suppress(StepError):
                        reference(contract)
            except BaseException:
                for slot in compiling:  # Ctrl-C: wait for no compiler
                    slot.stop()
                raise

    def _one_case(self, case: Case, blank: Result, slots: list[WorkerSlot]) -> Iterator[Result]:
        """Judge on every backend and time the right ones together; yields each row as soon as it is known.

        While a block is timed nothing else runs: no worker loads, compiles or judges.
        """
        _make_ready(slots)
        reference = partial(self._references.answer, case, blank.seed, blank.distribution)
        if self._device.startswith("cuda"):
            self._tell(events.Doing("compiling"))
            self._compile_beside(case, blank, slots, reference)
        to_time: list[CaseRun] = []
        began = unwritten_since = time.monotonic()
        for place, slot in enumerate(slots):
            self._tell(events.Doing(f"judging {slot.name}", JUDGING_SHARE * place / len(slots)))
            run = CaseRun(slot, replace(blank, backend=slot.name), self._settings, reference, began)
            run.judge()
            status, reason = (run.result.status, run.result.reason) if run.result else ("ok", "")
            self._tell(events.Judged(case.id, slot.name, status, reason))
            if run.result is not None:
                yield run.result
                run.release()
                continue
            to_time.append(run)
            ahead_s = self._settings.processes * sum(r.rounds * r.seconds_per_round for r in to_time)
            if time.monotonic() - unwritten_since + ahead_s > UNWRITTEN_S:
                yield from self._time(to_time)
                to_time, unwritten_since = [], time.monotonic()
        yield from self._time(to_time)
        self._references.forget(case, blank.seed, blank.distribution)

    def _time(self, runs: list[CaseRun]) -> Iterator[Result]:
        """Time together, and again in as many fresh processes as set; callables stay in this one."""
        if self._settings.processes == 1:
            yield from time_together(runs, self._order, self._tell_round)  # each row as soon as it is known
            return
        results = list(time_together(runs, self._order, self._tell_round))
        for process in range(1, self._settings.processes):
            repeats: list[tuple[int, CaseRun]] = []
            for index, (run, result) in enumerate(zip(runs, results, strict=True)):
                if result.samples_ms and not run.slot.in_process:
                    run.slot.stop()
                    repeats.append((index, CaseRun(run.slot, run.blank, self._settings, run.reference)))
            _make_ready([run.slot for _, run in repeats])
            for index, run in repeats:
                run.judge()
                if run.paces:
                    run.use_paces(runs[index].paces)
            timed = list(time_together([run for _, run in repeats], self._order, self._tell_round))
            for (index, _), result in zip(repeats, timed, strict=True):
                results[index] = join_results(results[index], result, process)
        yield from results

    def _tell_round(self, backends: int, index: int, rounds: int) -> None:
        share = JUDGING_SHARE + (1 - JUDGING_SHARE) * index / rounds
        self._tell(events.Doing(f"timing {backends} backends, round {index + 1} of {rounds}", share))


def _make_ready(slots: Sequence[WorkerSlot]) -> None:
    """Load those that are not running, side by side, and wait for all."""
    for slot in slots:
        slot.start()
    for slot in slots:
        with suppress(StepError):  # judging meets it again
            slot.ready()


def _missing(
    planned: Sequence[Planned], slots: list[WorkerSlot], stored: list[Result], seed: int, distribution: str
) -> list[tuple[Planned, list[WorkerSlot]]]:
    """The cases and backends without a stored result, each pair once."""
    keys = {result.key for result in stored}
    todo = []
    for plan in planned:
        lacking = [slot for slot in slots if (plan.case.id, slot.name, seed, distribution) not in keys]
        keys |= {(plan.case.id, slot.name, seed, distribution) for slot in lacking}
        if lacking:
            todo.append((plan, lacking))
    return todo


def _ignore(event: events.Event) -> None:
    pass
