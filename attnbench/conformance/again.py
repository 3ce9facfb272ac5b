"""The command that runs a check again, to paste into a shell in any folder."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass
from typing import Any

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import Backend
from attnbench.backend.registry import entries
from attnbench.conformance.outcome import ORACLE
from attnbench.problem import Case

# What these say changes which code runs or what it computes; threads and log levels do not.
VARIABLES = (
    "TRITON_INTERPRET",
    "TORCHDYNAMO_DISABLE",
    "NVIDIA_TF32_OVERRIDE",
    "CUBLAS_WORKSPACE_CONFIG",
    "JAX_PLATFORMS",
    "JAX_ENABLE_X64",
)


def address_of(backend: Backend) -> str:
    """What `attnbench check` calls this backend in any folder; empty if a command cannot reach it."""
    path, _, function = backend.name.rpartition(":")
    if path.endswith(".py"):
        return f"{os.path.abspath(path)}:{function}"
    if not isinstance(backend, FunctionBackend):
        return backend.name if backend.name in {entry.name for entry in entries()} else ""
    fn = backend.fn
    name, module = getattr(fn, "__name__", ""), getattr(fn, "__globals__", {})
    path = str(module.get("__file__", "")) if name and module.get(name) is fn else ""
    return f"{os.path.abspath(path)}:{name}" if path.endswith(".py") else ""


def plain_fields(case: Case) -> dict[str, Any]:
    """The case as JSON values, without the fields that have their defaults."""
    plain = {name: value for name, value in case.to_json().items() if value is not None and value != []}
    defaults = {"batch": 1, "layout": "bhsd", "direction": "fwd", "mask": "full"}
    plain = {name: value for name, value in plain.items() if defaults.get(name) != value}
    if plain["kv_heads"] == plain["q_heads"]:
        del plain["kv_heads"]
    if plain["v_dim"] == plain["head_dim"]:
        del plain["v_dim"]
    return plain


@dataclass(frozen=True)
class Again:
    """The commands that run one check of a backend again.

    `address` is what the command line calls the backend; if it is empty, the command is Python and calls it `name`.
    """

    address: str
    check: str
    seed: int
    contract: str | None = None
    device: str = ""
    name: str = ""
    declare: str = ""

    def on(self, case: Case, distribution: str) -> str:
        """On one case."""
        options = {"case": plain_fields(case)} | (
            {"distribution": distribution} if distribution != "randn" else {}
        )
        return self._command({} if self.check == ORACLE else {"only": self.check}, options)

    def on_its_own_cases(
        self,
        dtype: str,
        masks: tuple[str, ...] | None,
        backward: bool,
        where: str = "",
        more: dict[str, Any] | None = None,
    ) -> str:
        """On the cases that a property chooses in a dtype, with `more` options."""
        options: dict[str, Any] = {"dtype": dtype}
        options |= {"mask": masks} if masks else {}
        options |= ({"where": where} if where else {}) | (more or {})
        return self._command({"only": self.check}, options | ({} if backward else {"direction": "fwd"}))

    def _command(self, only: dict[str, Any], options: dict[str, Any]) -> str:
        options = only | options
        options |= {"declare": self.declare} if self.declare else {}
        options |= {"contract": self.contract} if self.contract else {}
        options |= {"device": self.device} if self.device else {}
        options |= {"seed": self.seed}
        if not self.address:
            plural = {"mask": "masks", "dtype": "dtypes", "direction": "directions"}
            listed = [f"{plural.get(name, name)}={value!r}" for name, value in options.items()]
            return f"attnbench.check({', '.join([self.name, *listed])})"
        words = ["attnbench", "check", self.address]
        for name, value in options.items():
            for one in value if isinstance(value, tuple) else (value,):
                words += [f"--{name}", json.dumps(one) if isinstance(one, dict) else str(one)]
        return " ".join([*_environment(), shlex.join(words)])


def _environment() -> list[str]:
    """`NAME=value` for each variable that matters and is set; a PYTHONPATH with relative folders made absolute."""
    words = [f"{name}={shlex.quote(os.environ[name])}" for name in VARIABLES if os.environ.get(name)]
    folders = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    if any(not os.path.isabs(folder) for folder in folders):
        absolute = os.pathsep.join(os.path.abspath(folder) for folder in folders)
        words.append(f"PYTHONPATH={shlex.quote(absolute)}")
    return words
