"""Is this backend fit for the next case? An executor with a backend in it, started again after each death."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnbench.backend import Backend, entries, resolve
from attnbench.errors import UnknownBackend
from attnbench.sweep.executors import Executor, InProcess, WorkerProcess
from attnbench.sweep.step_errors import UNKNOWN, Fault

STARTS = 3  # in a row; then the backend is given up, and each of its cases is a row that says so
START_TIMEOUT_S = 180.0


class Lane:
    """One backend of a sweep. `ready` loads it where need be; `call` does a step of a case.

    `opening` are further fields of the bench's step `open`.
    """

    def __init__(
        self,
        name: str,
        executor: Executor,
        backend: str | Callable[..., Any] | Backend | None,
        *,
        folder: Path | None = None,
        contract: str | None = None,
        memory_limit_bytes: int | None = None,
        **opening: Any,
    ) -> None:
        self.name = name
        self.given_up: Fault | None = None
        self._executor = executor
        self._backend = backend
        self._asked = {"folder": None if folder is None else str(folder), "contract": contract} | opening
        self._memory_limit_bytes = memory_limit_bytes
        self._about: dict[str, Any] | None = None

    @property
    def in_process(self) -> bool:
        return isinstance(self._executor, InProcess)

    def start(self) -> None:
        """Begin to start what is not running, so that several lanes load side by side."""
        if self.given_up is None and self._about is None:
            try:
                self._executor.start()
            except Fault as fault:
                self.given_up = fault

    def ready(self) -> dict[str, Any]:
        """What the loaded backend says of itself; raises the Fault for which it was given up."""
        for attempt in range(STARTS):
            if self.given_up is not None:
                raise self.given_up
            if self._about is not None:
                return self._about
            try:
                self._about = self._load()
            except Fault as fault:
                self.stop()
                if fault.status not in ("crashed", "oom") or attempt == STARTS - 1:
                    tries = f" ({STARTS} starts)" if attempt == STARTS - 1 else ""
                    self.given_up = Fault(fault.status, f"does not start{tries}: {fault.reason}", fault.notes)
                    if fault.status in ("unavailable", UNKNOWN):
                        self.given_up = fault
        return self.ready()

    def _load(self) -> dict[str, Any]:
        self._executor.call("pin", START_TIMEOUT_S)
        about: dict[str, Any] = {}
        if self._backend is not None:
            about = self._executor.call("open", START_TIMEOUT_S, backend=self._backend, **self._asked)
        self._executor.call("settle", START_TIMEOUT_S, memory_limit_bytes=self._memory_limit_bytes)
        return about

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Do a step; a fatal fault leaves the lane to be started again."""
        try:
            return self._executor.call(step, timeout_s, **fields)
        except Fault as fault:
            if fault.fatal:
                self.stop()
            raise
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._about = None
        self._executor.stop()


def make_lanes(
    backends: Sequence[str | Callable[..., Any] | Backend],
    device: str,
    *,
    folder: Path | None = None,
    contract: str | None = None,
    memory_limit_bytes: int | None = None,
) -> list[Lane]:
    """A lane for each backend: names and paths in workers, callables in this process.

    Raises UnknownBackend before anything is started. What lacks a library is given up at once, with the
    command that installs it.
    """
    listed = {entry.name: entry for entry in entries(folder)}
    lanes: dict[str, Lane] = {}
    for backend in backends:
        if not isinstance(backend, str):
            name = (
                backend.name if isinstance(backend, Backend) else getattr(backend, "__name__", repr(backend))
            )
            lanes.setdefault(name, Lane(name, InProcess(device), backend, contract=contract))
            continue
        is_path = ".py:" in backend
        if (is_path and not Path(backend.rpartition(":")[0]).is_file()) or (
            not is_path and backend not in listed
        ):
            resolve(backend, folder, contract)  # raises, saying what is near
            raise UnknownBackend(f"no backend called {backend!r}")
        lane = Lane(
            backend,
            WorkerProcess(device),
            backend,
            folder=folder,
            contract=contract,
            memory_limit_bytes=memory_limit_bytes,
        )
        if not is_path and not listed[backend].available:
            entry = listed[backend]
            hint = f"; to have it: {entry.install}" if entry.install else ""
            lane.given_up = Fault("unavailable", f"{entry.reason}{hint}")
        lanes.setdefault(backend, lane)
    return list(lanes.values())
