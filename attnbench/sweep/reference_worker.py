"""What is the right answer of a case, and what machine is this? A process without a backend, which is asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnbench.backend.interface import CONTRACTS
from attnbench.errors import AttnbenchError
from attnbench.problem import Case
from attnbench.sweep import reference_files
from attnbench.sweep.executors import Executor
from attnbench.sweep.slots import Lane
from attnbench.sweep.step_errors import Fault


class Oracle:
    """Works right answers out in float64, each question once, and keeps them as files in `folder`."""

    def __init__(
        self, executor: Executor, folder: Path, *, timeout_s: float, memory_limit_bytes: int | None
    ) -> None:
        self._lane = Lane("the reference", executor, None, memory_limit_bytes=memory_limit_bytes)
        self._folder, self._timeout_s = folder, timeout_s
        self._failed: dict[Path, Fault] = {}

    def start(self) -> None:
        """Begin to start; does not wait."""
        self._lane.start()

    def stop(self) -> None:
        self._lane.stop()

    def ask(self, step: str, **fields: Any) -> dict[str, Any]:
        """Do a step that is about the machine; AttnbenchError where no worker can be used here."""
        try:
            self._lane.ready()
            return self._lane.call(step, self._timeout_s, **fields)
        except Fault as fault:
            raise AttnbenchError(
                f"no worker can be used here: {fault.reason}; try `attnbench doctor`"
            ) from fault

    def answer(self, case: Case, seed: int, distribution: str, contract: str) -> str:
        """The path of the right answer, worked out when first asked for.

        A Fault of status `error` where it cannot be: that a reference takes too much is no fault of the backend's.
        """
        path = reference_files.path_of(self._folder, case, seed, distribution, contract)
        if path in self._failed:
            raise self._failed[path]
        if not path.exists():
            asked = {"case": case.to_json(), "seed": seed, "distribution": distribution}
            try:
                self._lane.ready()
                self._lane.call("reference", self._timeout_s, contract=contract, path=str(path), **asked)
            except Fault as fault:
                reason = f"nothing to judge by: the float64 reference failed ({fault.status}: {fault.reason})"
                self._failed[path] = Fault("error", reason, fault.notes)
                raise self._failed[path] from fault
        return str(path)

    def forget(self, case: Case, seed: int, distribution: str) -> None:
        """Remove what is kept of a case."""
        for contract in CONTRACTS:
            reference_files.path_of(self._folder, case, seed, distribution, contract).unlink(missing_ok=True)
