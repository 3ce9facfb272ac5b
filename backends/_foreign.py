"""How does a backend find the environment that its library lives in, and keep the process there?"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnbench.backend import Backend, Capabilities, Prepared, Refusal, environments
from attnbench.backend.foreign import Foreign, ForeignPrepared
from attnbench.errors import BackendUnavailable
from attnbench.problem import Case, Inputs

Lowered = tuple[dict[str, Any], dict[str, Any]]  # the task in JSON values, and its arrays


class ForeignBackend(Backend):
    """A backend whose program runs under another interpreter: `lower(case)` gives what it is told."""

    def __init__(
        self,
        capabilities: Capabilities,
        environment: str,
        program: str,
        lower: Callable[[Case], Lowered],
        modules: tuple[str, ...],
        packages: tuple[str, ...],
        kernel_family: str = "",
    ) -> None:
        self.capabilities = capabilities
        self._environment, self._program = environment, Path(__file__).with_name(program)
        self._lower, self._modules, self._packages = lower, modules, packages
        self.kernel_family = kernel_family
        self._processes: dict[str, Foreign] = {}
        self._limit_bytes: int | None = None

    def version(self) -> str:
        """Read from the environment's mark where there is one: a list of backends starts no process."""
        installed = environments.find(self._environment, self.name).packages
        if not all(name in installed for name in self._packages):
            installed = self._running().start()["packages"]
        return ", ".join(f"{name} {installed[name]}" for name in self._packages if name in installed)

    def _running(self) -> Foreign:
        kind = "cpu" if "cpu" in self.capabilities.devices else "cuda"
        return next(iter(self._processes.values()), None) or self._process(kind)

    def limit_memory(self, limit_bytes: int | None, device: str) -> None:
        self._limit_bytes = None if device.startswith("cuda") else limit_bytes
        for process in self._processes.values():
            self._limit(process)

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        refusal = super().refuses(case, device)
        if refusal is not None:
            return refusal
        try:
            self._lower(case)
        except NotImplementedError as reason:
            return Refusal(str(reason))
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        task, arrays = self._lower(case)
        return ForeignPrepared(self._process(inputs.device.type), case, inputs, task, arrays)

    def _process(self, device: str) -> Foreign:
        if device not in self._processes:
            python, given = self._interpreter()
            self._processes[device] = process = Foreign(python, self._program, device, keep_path=given)
            self._limit(process)
        return self._processes[device]

    def _limit(self, process: Foreign) -> None:
        if self._limit_bytes is not None:
            process.call("limit", limit_bytes=self._limit_bytes)

    def _interpreter(self) -> tuple[Path, bool]:
        there = environments.find(self._environment, self.name)
        if there.usable and there.python is not None:
            return there.python, there.state == "given"
        if environments.importable(self._modules):
            return Path(sys.executable), True
        raise BackendUnavailable(
            f"{self.name}: the environment {self._environment} is {there.state}; to have it: "
            f"{environments.how_to_make(self._environment)}"
        )
