"""Launches through Triton's own JIT (binder, specialisation, compiler) on a driver that only records.

Runs as a separate program, since a process decides only once whether Triton compiles or interprets. Prints the kernels
and their programs as JSON, one line per specimen.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from typing import Any

os.environ["ATTNBENCH_TRITON"] = "compile"
os.environ.pop("TRITON_INTERPRET", None)

import torch
from attnbench_backends.triton.ahead_of_time import Specimen, specimens
from attnbench_backends.triton.launch import Plan
from attnbench_backends.triton.score_gradients import score_gradients
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from attnbench.problem import make_inputs

launched: list[tuple[str, int]] = []


class Utils:
    """The driver's functions that load a compiled kernel."""

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232_448, "warpSize": 32, "max_num_regs": 65_536}

    def load_binary(self, name: str, binary: bytes, shared: int, device: int) -> tuple[int, ...]:
        assert binary[:4] == b"\x7fELF"
        return 1, 2, 100, 0, 1024  # module, function, registers, spills, most threads


class Launcher:
    """Replaces the stub that puts arguments on the GPU."""

    def __init__(self, source: Any, metadata: Any) -> None:
        self.name = source.fn.__name__

    def __call__(self, programs: int, *rest: Any) -> None:
        launched.append((self.name, programs))


class Hopper:
    """A driver for a GPU that is not here."""

    utils, launcher_cls = Utils(), Launcher

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def launch(specimen: Specimen) -> None:
    case = specimen.case
    inputs = make_inputs(case)
    plan = Plan(case, torch.device("cpu"), specimen.tiles((9, 0)))
    changes = plan.bind(inputs.scores)
    out, lse = plan.forward(inputs.q, inputs.k, inputs.v, changes)
    if inputs.dout is not None:
        *_, delta = plan.backward(inputs.q, inputs.k, inputs.v, changes, out, lse, inputs.dout)
        score_gradients(plan, inputs.q, inputs.k, inputs.v, changes, lse, delta, inputs.dout)


if __name__ == "__main__":
    driver.set_active(Hopper())  # type: ignore[arg-type]
    for name in sys.argv[1:]:
        specimen = specimens()[name]
        short = {} if specimen.case.q_len == 1 else {"q_len": 500, "k_len": 500}
        launch(replace(specimen, case=replace(specimen.case, batch=1, q_heads=2, kv_heads=1, **short)))
        sys.stdout.write(json.dumps({"specimen": name, "launched": launched}) + "\n")
        launched.clear()
