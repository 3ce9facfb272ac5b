"""Backends on a library that is installed here or in its own environment; one program file serves both."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from attnbench.backend import Backend, Capabilities, Gradients, Output, Prepared, Refusal, environments
from attnbench.backend.foreign import Foreign, ForeignPrepared, facts_of
from attnbench.errors import BackendUnavailable
from attnbench.problem import Case, Inputs

from . import _program_torch

Lowered = tuple[dict[str, Any], dict[str, Any]]  # the task as JSON values, and its arrays


class ForeignBackend(Backend):
    """A backend whose program runs under another interpreter; `lower(case)` returns the program's task."""

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
        """Read from the environment's mark if there is one, so that listing backends starts no process."""
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
            python, keep_path = self._interpreter()
            self._processes[device] = process = Foreign(python, self._program, device, keep_path=keep_path)
            self._limit(process)
        return self._processes[device]

    def _limit(self, process: Foreign) -> None:
        if self._limit_bytes is not None:
            process.call("limit", limit_bytes=self._limit_bytes)

    def _interpreter(self) -> tuple[Path, bool]:
        """The interpreter, and whether its process keeps our PYTHONPATH."""
        environment = environments.find(self._environment, self.name)
        if environment.usable and environment.python is not None:
            return environment.python, environment.state == "given"
        if environments.importable(self._modules):
            return Path(sys.executable), True
        raise BackendUnavailable(
            f"{self.name}: the environment {self._environment} is {environment.state}; to have it: "
            f"{environments.how_to_make(self._environment)}"
        )


class LibraryBackend(ForeignBackend):
    """A library on torch tensors: called in this process if it is installed here, else under its own interpreter."""

    @property
    def is_here(self) -> bool:
        """Whether the library is called in this process."""
        if not self._environment:  # the library is torch itself
            return True
        if environments.overridden(self._environment, self.name):
            return False
        return environments.importable(self._modules)

    def version(self) -> str:
        if not self.is_here:
            return super().version()
        from importlib.metadata import PackageNotFoundError, version

        versions = []
        for name in self._packages:
            try:
                versions.append(f"{name} {version(name)}")
            except PackageNotFoundError:  # built by hand, without a distribution
                versions.append(name)
        return ", ".join(versions)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        if not self.is_here:
            return super().prepare(case, inputs)
        task, arrays = self._lower(case)
        return LocalPrepared(task, arrays, case, inputs)


class LocalPrepared(Prepared):
    """A job in this process, on views of the inputs' storage; packing is off the clock."""

    def __init__(self, task: dict[str, Any], arrays: dict[str, Any], case: Case, inputs: Inputs) -> None:
        super().__init__()
        self._inputs, self._case = inputs, case
        device = str(inputs.device)
        fixed = {name: _program_torch.tensor_of(array, device) for name, array in arrays.items()}
        self._job = _program_torch.Job(task | {"case": facts_of(case)}, self._tensors() | fixed, device)
        self._taken = self._writes()
        self.kernel, self.prepare_ms = self._job.kernel, dict(self._job.prepare_ms)

    def forward(self) -> Output:
        if self._writes() != self._taken:  # the storage holds new values; a packed copy must follow
            self._job.refill(self._tensors())
            self._taken = self._writes()
        self._job.compute()
        out, lse = self._job.whole_output()
        return Output(out.transpose(1, 2), lse)  # [B, H, Q, Dv], [B, H, Q]

    def backward(self, dout: Tensor) -> Gradients:
        same = dout is self._inputs.dout and self._writes() == self._taken
        packed = self._job.dout if same else self._job.pack_dout(dout.transpose(1, 2))
        self._job.compute_gradients(packed)
        grads = self._job.whole_gradients()
        dq, dk, dv = (grads.pop(name).transpose(1, 2) for name in ("dq", "dk", "dv"))  # [B, H, S, D]
        return Gradients(dq, dk, dv, grads)

    def drop_graph(self) -> None:
        self._job.drop()

    def _tensors(self) -> dict[str, Tensor]:
        outer = ("q", "k", "v", "dout")
        # [B, H, S, D] -> [B, S, H, D], a view
        return {n: x.transpose(1, 2) if n in outer else x for n, x in self._inputs.tensors.items()}

    def _writes(self) -> list[int]:
        return [x._version for x in self._inputs.tensors.values()]
