"""Does torch see a well-behaved operator: its fake, its gradient, torch.compile, LSE, memory layout?"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.backend import Backend
from attnbench.errors import ScoreError
from attnbench.problem import ALiBi, Bias, Causal, Sink, Softcap, parse_mask


def _tensors(
    device: str, heads: int = 2, kv_heads: int = 1, length: int = 24, dim: int = 16
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, dim), (1, kv_heads, length, dim), (1, kv_heads, length, dim)]
    return tuple(torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes)


def _exact(q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    s = torch.einsum("bhqd,bhkd->bhqk", q, k.repeat_interleave(group, 1)) * q.shape[-1] ** -0.5
    s = s if bias is None else s + bias
    allowed = mask.materialize(1, q.shape[1], q.shape[2], k.shape[2], device=q.device)
    s = s.masked_fill(~allowed, -torch.inf)
    return torch.softmax(s, -1) @ v.repeat_interleave(group, 1), torch.logsumexp(s, -1)


def test_opcheck_finds_nothing_wrong(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton import op

    q, k, v = _tensors(device)
    bias = torch.randn(1, 2, 24, 24, device=device, requires_grad=True)
    given = (q, k, v, [bias], "causal", "bias(hqk);softcap(3)", 0.25)
    results = torch.library.opcheck(torch.ops.attnbench.attend, given)
    assert set(results.values()) == {"SUCCESS"}
    assert op._attend is not None


def test_gradients_flow_through_out_and_through_lse(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = _tensors(device)
    bias = torch.randn(1, 1, 24, 24, device=device, requires_grad=True)
    leaves = (q, k, v, bias)
    out, lse = attend(q, k, v, mask=Causal(), scores=(Bias(bias),))
    exact_out, exact_lse = _exact(q.double(), k.double(), v.double(), Causal(), bias.double())
    weight, lse_weight = torch.randn_like(out), torch.randn_like(lse)
    got = torch.autograd.grad((out * weight).sum() + (lse * lse_weight).sum(), leaves)
    wanted = torch.autograd.grad((exact_out * weight).sum() + (exact_lse * lse_weight).sum(), leaves)
    for mine, exact in zip(got, wanted, strict=True):
        scale = exact.abs().max()
        # float32 throughout: a few hundred roundings of 2^-24 of the largest gradient.
        assert (mine - exact).abs().max() < 256 * 2**-24 * scale


def test_a_compiled_function_is_one_graph_with_the_same_bits(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = (x.detach() for x in _tensors(device))

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q * 2, k, v, mask="causal & window(5, 0)", scores=(ALiBi(), Softcap(4.0)))[0] + 1

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(q, k, v), model(q, k, v))


def test_the_output_lies_in_memory_as_the_queries_do(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in _tensors(device))
    out, lse = attend(q, k, v, mask=parse_mask("causal"))
    assert out.stride() == q.stride()
    assert lse.shape == q.shape[:3]


def test_a_sink_given_as_a_number_needs_no_tensor(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = (x.detach() for x in _tensors(device))
    _, lse = attend(q, k, v, scores=(Sink(100.0),))
    assert torch.allclose(lse, torch.full_like(lse, 100.0))


def test_a_bias_without_its_tensor_is_refused(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    with pytest.raises(ScoreError, match="give the tensor itself"):
        attend(*_tensors(device), scores=(Bias("hqk"),))


def test_two_runs_give_the_same_bits(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    runs = []
    for _ in range(2):
        q, k, v = _tensors(device)
        out, _ = attend(q, k, v, mask=Causal())
        runs.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
