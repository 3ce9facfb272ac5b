"""How does a backend use a torch library that is installed here, or in an environment of its own? By the same file."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from attnbench.backend import Gradients, Output, Prepared, environments
from attnbench.backend.foreign import facts_of
from attnbench.problem import Case, Inputs

from . import _there_torch
from ._foreign import ForeignBackend


class LibraryBackend(ForeignBackend):
    """A library on torch tensors: called in this process where it is installed, else under its own interpreter."""

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

        found = []
        for name in self._packages:
            try:
                found.append(f"{name} {version(name)}")
            except PackageNotFoundError:  # built by hand, without a distribution
                found.append(name)
        return ", ".join(found)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        if not self.is_here:
            return super().prepare(case, inputs)
        task, arrays = self._lower(case)
        return HerePrepared(task, arrays, case, inputs)


class HerePrepared(Prepared):
    """A job in this process, on views of the inputs' own storage; what must be packed is packed off the clock."""

    def __init__(self, task: dict[str, Any], arrays: dict[str, Any], case: Case, inputs: Inputs) -> None:
        super().__init__()
        self._inputs, self._case = inputs, case
        device = str(inputs.device)
        fixed = {name: _there_torch.tensor_of(array, device) for name, array in arrays.items()}
        self._job = _there_torch.Job(task | {"case": facts_of(case)}, self._tensors() | fixed, device)
        self._taken = self._writes()
        self.kernel, self.prepare_ms = self._job.kernel, dict(self._job.prepare_ms)

    def forward(self) -> Output:
        if self._writes() != self._taken:  # the storage holds new numbers; a packed copy must follow
            self._job.refill(self._tensors())
            self._taken = self._writes()
        self._job.compute()
        out, lse = self._job.whole_output()
        return Output(out.transpose(1, 2), lse)  # [B, H, Q, Dv], [B, H, Q]

    def backward(self, dout: Tensor) -> Gradients:
        same = dout is self._inputs.dout and self._writes() == self._taken
        packed = self._job.dout if same else self._job.pack_dout(dout.transpose(1, 2))
        self._job.compute_gradients(packed)
        found = self._job.whole_gradients()
        dq, dk, dv = (found.pop(name).transpose(1, 2) for name in ("dq", "dk", "dv"))  # [B, H, S, D]
        return Gradients(dq, dk, dv, found)

    def drop_graph(self) -> None:
        self._job.drop()

    def _tensors(self) -> dict[str, Tensor]:
        outer = ("q", "k", "v", "dout")
        # [B, H, S, D] -> [B, S, H, D], a view
        return {n: x.transpose(1, 2) if n in outer else x for n, x in self._inputs.tensors.items()}

    def _writes(self) -> list[int]:
        return [x._version for x in self._inputs.tensors.values()]
