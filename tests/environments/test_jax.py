"""JAX and flax are right, in the environment that `attnbench env create jax` makes.

Runs with ATTNBENCH_TEST_JAX=1: the environment is made once (about 45 s, 750 MB) in its usual place and kept.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
import torch

from attnbench.backend import environments, resolve
from attnbench.conformance import check
from attnbench.judge import judge, make_reference
from attnbench.problem import ALiBi, Bias, Case, RelativeBias, make_inputs, parse_mask

pytestmark = pytest.mark.skipif(
    os.environ.get("ATTNBENCH_TEST_JAX") != "1",
    reason="needs the jax environment; ATTNBENCH_TEST_JAX=1 makes it (about 45 s) and runs these",
)


@pytest.fixture(scope="module", autouse=True)
def environment() -> Any:
    if not environments.find("jax").usable:
        environments.create("jax")
    return environments.find("jax")


def problem(**changes: Any) -> Case:
    small: dict[str, Any] = {
        "q_len": 48,
        "k_len": 48,
        "q_heads": 4,
        "head_dim": 32,
        "dtype": "fp32",
        "direction": "fwd_bwd",
    }
    return Case(**(small | changes))


BOTH = [
    problem(dtype="bf16"),
    problem(mask=parse_mask("causal"), layout="bshd", batch=2),
    problem(mask=parse_mask("causal"), k_len=64, dtype="bf16"),
    problem(mask=parse_mask("causal(top_left)"), k_len=64),
    problem(mask=parse_mask("causal & window(7, 0)")),
    problem(mask=parse_mask("padding(48, 20)"), batch=2),
    problem(mask=parse_mask("documents(20, 28) & causal")),
]
XLA = [
    problem(kv_heads=2, mask=parse_mask("causal"), dtype="bf16"),
    problem(scores=(Bias("hqk"),), mask=parse_mask("causal")),
    problem(scores=(Bias("bhqk"),), batch=2, dtype="bf16"),
    problem(scores=(ALiBi(),), mask=parse_mask("causal"), k_len=64),
    problem(scores=(RelativeBias("t5(8,16,bidirectional)"),)),
    problem(scale=0.3),
]


@pytest.mark.parametrize(
    ("name", "case"),
    [("jax_xla", case) for case in BOTH + XLA]
    + [("flax_mha", case) for case in [*BOTH, problem(dtype="fp16")]],
    ids=lambda value: value if isinstance(value, str) else value.id,
)
def test_forward_and_backward_are_right(name: str, case: Case) -> None:
    backend = resolve(name)
    assert backend.refuses(case) is None
    inputs = make_inputs(case, seed=1)
    prepared = backend.prepare(case, inputs)
    output = prepared.forward()
    assert inputs.dout is not None
    gradients = prepared.backward(inputs.dout)
    verdict = judge(make_reference(inputs, backend.capabilities.contract, 0), output, gradients, inputs)
    assert verdict.ok, verdict.reason
    assert {"fwd_peak", "saved", "bwd_peak"} <= set(prepared.memory() or {})
    assert "xla on cpu" in prepared.kernel


@pytest.mark.parametrize(
    ("sizes", "distribution"),
    [
        ({"q_len": 11, "k_len": 64, "head_dim": 96}, "sign_flipped_v"),
        ({"q_len": 128, "k_len": 32}, "sign_flipped_dout"),
    ],
)
def test_the_gradient_of_a_table_is_added_up_in_float32(sizes: dict[str, int], distribution: str) -> None:
    case = problem(q_heads=1, dtype="bf16", scores=(RelativeBias("t5(32,128,bidirectional)"),), **sizes)
    (outcome,) = check("jax_xla", device="cpu", case=case, distribution=distribution).outcomes
    assert outcome.status == "ok", outcome.reason


@pytest.mark.parametrize("mask", ["window(3, 1)", "causal & padding(9)", "prefix(5)", "documents(5, 6, 5)"])
def test_the_library_applies_the_mask_of_the_case(mask: str) -> None:
    """q = 0 and V the identity: out is above zero exactly where a key is attended."""
    case = Case(q_len=16, k_len=16, q_heads=2, head_dim=16, dtype="fp32", mask=parse_mask(mask))
    inputs = make_inputs(case)
    inputs.q.zero_()
    inputs.v.copy_(torch.eye(16).expand(1, 2, 16, 16))
    seen = resolve("jax_xla").prepare(case, inputs).forward().out > 0
    np.testing.assert_array_equal(
        seen.numpy(), case.mask.materialize(1, 2, 16, 16).expand(1, 2, 16, 16).numpy()
    )


def test_rows_without_a_key_and_half_precision_on_a_cpu_are_refused() -> None:
    backend = resolve("jax_xla")
    empty = backend.refuses(problem(mask=parse_mask("documents(5, 6)")))
    assert empty is not None
    assert "mean_v" in empty.reason
    half = backend.refuses(problem(dtype="fp16"))
    assert half is not None
    assert "F16_F16_F32" in half.reason


def test_tensors_of_the_caller_have_gradients() -> None:
    import attnbench as ab

    q, k, v = (torch.randn(1, 2, 12, 16, requires_grad=True) for _ in range(3))
    results = []
    for backend in ("jax_xla", "naive"):
        out = ab.attention(q, k, v, mask=ab.Causal(), backend=backend)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
