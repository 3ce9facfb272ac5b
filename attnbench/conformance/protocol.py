"""A backend computes on each call, from the current inputs, with the kernel it names, and changes nothing else.

On one prepared case: inputs and clocks untouched, a right answer again, a new answer when the same storage holds new
numbers, be they nearly alike, earlier answers unchanged, no kernel but the one named.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import Backend, Gradients, Output
from attnbench.conformance.alike import faults_on_alike_inputs
from attnbench.judge.reference import Reference
from attnbench.judge.verdict import judge
from attnbench.problem import Inputs

CLOCKS = ("perf_counter", "perf_counter_ns", "time", "monotonic", "monotonic_ns", "process_time", "time_ns")
FIRST_IS_WRONG = "the first call is wrong"
CALLS = 4  # the last one reaches a fast path that starts after a few calls
ATTENTION_OPERATORS = ("scaled_dot_product", "flash_attention", "efficient_attention", "flex_attention")


class _Operators(TorchDispatchMode):
    """The names of the attention operators that run inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name()
        if any(part in name for part in ATTENTION_OPERATORS):
            self.names.add(name.split("::")[-1].split(".")[0])
        return func(*args, **(kwargs or {}))


@contextmanager
def clocks_watched() -> Iterator[list[str]]:
    """Yields a list that ends up with the clocks replaced inside; restores them."""
    before = {name: getattr(time, name) for name in CLOCKS}
    replaced: list[str] = []
    try:
        yield replaced
    finally:
        for name, clock in before.items():
            if getattr(time, name) is not clock:
                setattr(time, name, clock)
                replaced.append(name)


@contextmanager
def memory_poisoned() -> Iterator[None]:
    """torch.empty fills tensors with NaN, so that what a backend leaves unwritten shows."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    deterministic: Any = torch.utils.deterministic  # type: ignore[attr-defined]
    filled = deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = filled
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def refill(inputs: Inputs, others: Inputs) -> None:
    """Write the numbers of `others` into the storage of `inputs`."""
    new = others.tensors
    for name, tensor in inputs.tensors.items():
        tensor.copy_(new[name])


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal in every bit, NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8))


def protocol_faults(
    backend: Backend, inputs: Inputs, others: Inputs, reference: Reference, other_reference: Reference
) -> list[str]:
    """What is wrong with the way the backend works, in sentences; empty if nothing is.

    `others` are other numbers for the same case; both sets must be writable in place.
    """
    held = inputs.fresh()
    before = held.checksum()
    faults: list[str] = []

    def run() -> tuple[Output, Gradients | None]:
        output = prepared.forward()
        gradients = None if held.dout is None else prepared.backward(held.dout)
        return output, gradients

    def run_by_name() -> dict[str, Tensor]:
        output, gradients = run()
        if gradients is None:
            return {"out": output.out}
        return {"out": output.out, "dq": gradients.dq, "dk": gradients.dk, "dv": gradients.dv}

    with clocks_watched() as replaced, memory_poisoned():
        prepared = backend.prepare(held.case, held)
        operators = _Operators()
        # A plain function names no kernel; it may call any, and torch compiles nothing under such a mode.
        with nullcontext() if isinstance(backend, FunctionBackend) else operators:
            first, gradients = run()
        verdict = judge(reference, first, gradients, held)
        if not verdict.ok:
            faults.append(f"{FIRST_IS_WRONG}: {verdict.reason}")
        kept = first.out.clone()
        again = [run() for _ in range(CALLS)]
        if held.checksum() != before:
            faults.append("the inputs are changed in place")
        # Other bits in another call are no fault (see claims.py); a wrong answer is.
        wrong = [v for v in (judge(reference, *each, held) for each in again) if not v.ok]
        if verdict.ok and wrong:
            faults.append(f"the same call gives a wrong answer when it is repeated: {wrong[0].reason}")
        refill(held, others)
        refilled = judge(other_reference, *run(), held)
        if not refilled.ok:
            faults.append(f"new numbers in the same storage give a wrong answer: {refilled.reason}")
        else:
            faults += faults_on_alike_inputs(run_by_name, held, others)
        if not same_bits(kept, first.out):
            faults.append("a later call changes the answer of an earlier one")
        ran = {name.removesuffix("_backward") for name in operators.names}
        unnamed = sorted(name for name in ran if name not in prepared.kernel)
        if unnamed:
            faults.append(f"runs {', '.join(unnamed)}, but names its kernel {prepared.kernel!r}")
    if replaced:
        faults.append(f"replaces the clock: time.{', time.'.join(replaced)}")
    return faults
