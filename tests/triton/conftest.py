"""Shared by the tests of the Triton kernel: the backend, and one way to judge a case on it."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from attnbench.backend import Backend, resolve
from attnbench.judge import judge, make_reference
from attnbench.problem import Case, make_inputs, parse_mask

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    # Without a GPU, loading the backend switches Triton to its interpreter; the tests' kernels come after that.
    resolve("triton")


@pytest.fixture(scope="session")
def triton_backend() -> Backend:
    """The backend, by its name through the registry."""
    return resolve("triton")


@pytest.fixture(scope="session")
def device() -> str:
    """The GPU if there is one, else the CPU (and Triton's interpreter)."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """The interpreter's small matrices are slower on several threads than on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def judged(triton_backend: Backend, device: str) -> Callable[..., None]:
    """`judged(distribution=..., **changes)`: a small case on the kernel, judged by the float64 reference."""

    def run(distribution: str = "randn", seed: int = 0, **changes: Any) -> None:
        small: dict[str, Any] = {"q_len": 40, "k_len": 40, "q_heads": 2, "head_dim": 16, "dtype": "fp32"}
        fields = {**small, "direction": "fwd_bwd", **changes}
        if isinstance(fields.get("mask"), str):
            fields["mask"] = parse_mask(fields["mask"])
        case = Case(**fields)
        refusal = triton_backend.refuses(case, device)
        assert refusal is None, refusal
        inputs = make_inputs(case, seed, device, distribution)
        prepared = triton_backend.prepare(case, inputs)
        output = prepared.forward()
        gradients = None if inputs.dout is None else prepared.backward(inputs.dout)
        verdict = judge(make_reference(inputs, "flash", seed), output, gradients, inputs)
        assert verdict.ok, f"{case.id}: {verdict.reason}"

    return run
