"""A worker slot: an executor with one backend loaded, restarted after each crash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnbench.backend import Backend, Capabilities, declared_refusal, entries, resolve
from attnbench.backend.declared import declared_capabilities
from attnbench.errors import UnknownBackend
from attnbench.problem import Case
from attnbench.sweep.executors import Executor, InProcess, WorkerProcess
from attnbench.sweep.starting import ForkServer
from attnbench.sweep.step_errors import UNKNOWN_BACKEND, StepError

STARTS = 3  # in a row; then the backend is given up, and each of its cases is a row with the reason
START_TIMEOUT_S = 180.0


class WorkerSlot:
    """One backend of a sweep (None: none, for references). `ready` loads it if needed; `call` does a step of a case.

    `more_to_open` are further fields of the bench's step `open`. With `declared` nothing is ever started: these
    capabilities refuse every case of the sweep.
    """

    declared: Capabilities | None = None

    def __init__(
        self,
        name: str,
        executor: Executor,
        backend: str | Callable[..., Any] | Backend | None,
        *,
        folder: Path | None = None,
        contract: str | None = None,
        memory_limit_bytes: int | None = None,
        **more_to_open: Any,
    ) -> None:
        self.name = name
        self.given_up: StepError | None = None
        self._executor = executor
        self._backend = backend
        self._to_open = {
            "folder": None if folder is None else str(folder),
            "contract": contract,
        } | more_to_open
        self._memory_limit_bytes = memory_limit_bytes
        self._about: dict[str, Any] | None = None

    @property
    def in_process(self) -> bool:
        return isinstance(self._executor, InProcess)

    @property
    def is_loaded(self) -> bool:
        return self._about is not None

    @property
    def contract(self) -> str:
        """The contract that the loaded backend is judged under; empty if none is loaded."""
        return str(self._about.get("contract", "")) if self._about else ""

    @property
    def compiles(self) -> bool:
        """Whether the loaded backend says that preparing a case compiles."""
        return bool(self._about and self._about.get("compiles"))

    def start(self) -> None:
        """Start without waiting if it is not running, so that several slots load side by side."""
        if self.given_up is None and self._about is None and self.declared is None:
            try:
                self._executor.start()
            except StepError as error:
                self.given_up = error

    def ready(self) -> dict[str, Any]:
        """The loaded backend's description (`Bench.open`); raises the StepError for which it was given up."""
        if self.declared is not None:
            return {}
        for start in range(STARTS):
            if self.given_up is not None:
                raise self.given_up
            if self._about is not None:
                return self._about
            try:
                self._about = self._load()
            except StepError as error:
                self.stop()
                if error.status not in ("crashed", "oom") or start == STARTS - 1:
                    starts = f" ({STARTS} starts)" if start == STARTS - 1 else ""
                    self.given_up = StepError(
                        error.status, f"does not start{starts}: {error.reason}", error.notes
                    )
                    if error.status in ("unavailable", UNKNOWN_BACKEND):
                        self.given_up = error
        return self.ready()

    def _load(self) -> dict[str, Any]:
        self._executor.call("pin", START_TIMEOUT_S)
        about: dict[str, Any] = {}
        if self._backend is not None:
            about = self._executor.call("open", START_TIMEOUT_S, backend=self._backend, **self._to_open)
        self._executor.call("settle", START_TIMEOUT_S, memory_limit_bytes=self._memory_limit_bytes)
        return about

    def call(self, step: str, timeout_s: float | None = None, **fields: Any) -> dict[str, Any]:
        """Do a step; after a fatal error the next `ready` starts the executor again."""
        try:
            return self._executor.call(step, timeout_s, **fields)
        except StepError as error:
            if error.fatal:
                self.stop()
            raise
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        self._about = None
        self._executor.stop()


def make_slots(
    backends: Sequence[str | Callable[..., Any] | Backend],
    device: str,
    *,
    folder: Path | None = None,
    contract: str | None = None,
    memory_limit_bytes: int | None = None,
    cases: Sequence[Case] = (),
    server: ForkServer | None = None,
) -> list[WorkerSlot]:
    """A slot per backend: names and paths in workers (forked from the `server`), callables in this process.

    Raises UnknownBackend before anything is started. A backend whose library is missing is given up at once, with
    the command that installs it; one whose file declares that it takes none of the `cases` is never started.
    """
    listed = {entry.name: entry for entry in entries(folder)}
    slots: dict[str, WorkerSlot] = {}
    for backend in backends:
        if not isinstance(backend, str):
            name = (
                backend.name if isinstance(backend, Backend) else getattr(backend, "__name__", repr(backend))
            )
            slots.setdefault(name, WorkerSlot(name, InProcess(device), backend, contract=contract))
            continue
        is_path = ".py:" in backend
        if (is_path and not Path(backend.rpartition(":")[0]).is_file()) or (
            not is_path and backend not in listed
        ):
            resolve(backend, folder, contract)  # raises and names the nearest
            raise UnknownBackend(f"no backend called {backend!r}")
        slot = WorkerSlot(
            backend,
            WorkerProcess(device, server=server),
            backend,
            folder=folder,
            contract=contract,
            memory_limit_bytes=memory_limit_bytes,
        )
        if not is_path and not listed[backend].available:
            entry = listed[backend]
            hint = f"; to have it: {entry.install}" if entry.install else ""
            slot.given_up = StepError("unavailable", f"{entry.reason}{hint}")
        elif not is_path and cases:
            declared = declared_capabilities(Path(listed[backend].source))
            if declared is not None and all(declared_refusal(declared, case, device) for case in cases):
                slot.declared = declared
        slots.setdefault(backend, slot)
    return list(slots.values())
