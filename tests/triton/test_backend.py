"""The Triton backend: what it takes, what it refuses, and how it describes itself."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch

from attnbench.backend import Backend
from attnbench.conformance import check
from attnbench.problem import make_inputs, parse_mask

without_a_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: nothing is interpreted")


@without_a_gpu
def test_the_interpreter_says_that_it_is_one_and_is_not_timed(triton_backend: Backend, a_case: Any) -> None:
    case = a_case(dtype="bf16")
    prepared = triton_backend.prepare(case, make_inputs(case))
    assert "interpreter, float32 inside" in prepared.kernel
    assert not triton_backend.capabilities.timed
    assert prepared.forward().out.dtype == torch.bfloat16


@without_a_gpu
@pytest.mark.parametrize(
    "changes",
    [{"q_len": 8192, "k_len": 8192}, {"q_len": 1024, "k_len": 1024, "q_heads": 64}, {"batch": 65_537}],
    ids=lambda changes: "-".join(f"{name}{value}" for name, value in changes.items()),
)
def test_a_case_too_long_for_the_interpreter_is_refused_with_its_time(
    triton_backend: Backend, a_case: Any, changes: dict[str, int]
) -> None:
    refusal = triton_backend.refuses(a_case(**changes), "cpu")
    assert refusal is not None
    assert "interpreter" in refusal.reason
    assert "s (limit: 12 s)" in refusal.reason


@without_a_gpu
def test_a_long_sparse_case_is_taken_where_a_dense_one_is_refused(
    triton_backend: Backend, a_case: Any
) -> None:
    sparse = parse_mask("causal & window(15, 0) & prefix(3)")
    assert triton_backend.refuses(a_case(q_len=4096, k_len=4096, q_heads=4), "cpu") is not None
    assert triton_backend.refuses(a_case(q_len=4096, k_len=4096, q_heads=4, mask=sparse), "cpu") is None


@without_a_gpu
def test_another_library_that_imported_triton_first_does_no_harm() -> None:
    program = (
        "import triton, triton.language as tl\n"
        "from attnbench.problem import Case, make_inputs, parse_mask\n"
        "from attnbench.backend import resolve\n"
        "case = Case(q_len=20, k_len=20, q_heads=1, head_dim=16, dtype='fp32', mask=parse_mask('causal'))\n"
        "print(resolve('triton').prepare(case, make_inputs(case)).forward().out.isfinite().all().item())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr[-2000:]


def test_naming_the_backend_imports_no_triton() -> None:
    program = (
        "import sys\nfrom attnbench.backend import entries\n"
        "found = {e.name: e for e in entries()}['triton']\nprint(found.available, 'triton' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.split() == ["True", "False"], done.stderr[-2000:]


@pytest.mark.interpret
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_the_whole_conformance_battery_passes(device: str, dtype: str) -> None:
    report = check("triton", level="standard", device=device, dtypes=[dtype])
    assert report.ok, [str(failure) for failure in report.failures]


def test_a_layer_prepares_a_case_once_and_its_calls_keep_gradients_of_their_own(
    triton_backend: Backend, device: str
) -> None:
    from attnbench.layer.attend import Attend

    mask = parse_mask("causal & window(7, 0)")
    one, other, k, v = (torch.randn(1, 2, 24, 16, device=device).requires_grad_() for _ in range(4))
    alone = [torch.autograd.grad(Attend("triton")(q, k, v, mask=mask).sum(), (q, v)) for q in (one, other)]
    attend = Attend("triton")
    first, second = (attend(q, k, v, mask=mask) for q in (one, other))  # both graphs alive
    assert attend.prepared == 1
    for out, q, gradients in ((second, other, alone[1]), (first, one, alone[0])):
        for mine, right in zip(torch.autograd.grad(out.sum(), (q, v)), gradients, strict=True):
            assert torch.equal(mine, right)
