"""The reference worker: a process without a backend that computes right answers and describes the machine."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from attnbench.backend.interface import CONTRACTS
from attnbench.errors import AttnbenchError
from attnbench.problem import Case
from attnbench.sweep.executors import Executor
from attnbench.sweep.slots import WorkerSlot
from attnbench.sweep.step_errors import StepError


class ReferenceWorker:
    """Computes right answers in float64, each once, and keeps them as files in `folder`."""

    def __init__(
        self, executor: Executor, folder: Path, *, timeout_s: float, memory_limit_bytes: int | None = None
    ) -> None:
        self._slot = WorkerSlot("the reference", executor, None, memory_limit_bytes=memory_limit_bytes)
        self._folder, self._timeout_s = folder, timeout_s
        self._errors: dict[Path, StepError] = {}

    def start(self) -> None:
        """Start without waiting."""
        self._slot.start()

    def stop(self) -> None:
        self._slot.stop()

    def ask(self, step: str, **fields: Any) -> dict[str, Any]:
        """Do the step `environment` or `roofs`; AttnbenchError if no worker can run on this machine."""
        try:
            self._slot.ready()
            return self._slot.call(step, self._timeout_s, **fields)
        except StepError as error:
            raise AttnbenchError(
                f"no worker can be used here: {error.reason}; try `attnbench doctor`"
            ) from error

    def answer(self, case: Case, seed: int, distribution: str, contract: str) -> str:
        """The path of the right answer, computed on the first request.

        If it cannot be computed, raises a StepError of status `error`: a reference that runs out of memory is not
        the backend's failure.
        """
        path = _path(self._folder, case, seed, distribution, contract)
        if path in self._errors:
            raise self._errors[path]
        if not path.exists():
            fields = {"case": case.to_json(), "seed": seed, "distribution": distribution}
            try:
                self._slot.ready()
                self._slot.call("reference", self._timeout_s, contract=contract, path=str(path), **fields)
            except StepError as error:
                reason = f"nothing to judge by: the float64 reference failed ({error.status}: {error.reason})"
                self._errors[path] = StepError("error", reason, error.notes)
                raise self._errors[path] from error
        return str(path)

    def forget(self, case: Case, seed: int, distribution: str) -> None:
        """Remove the files of a case."""
        for contract in CONTRACTS:
            _path(self._folder, case, seed, distribution, contract).unlink(missing_ok=True)


def _path(folder: Path, case: Case, seed: int, distribution: str, contract: str) -> Path:
    """The file of one right answer; its name covers everything that changes the answer."""
    text = f"{case.to_json()}|{seed}|{distribution}|{contract}"
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"
