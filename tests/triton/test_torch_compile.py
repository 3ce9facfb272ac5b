"""torch finds the operator well-behaved; torch.compile takes it in one graph and trains through it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnbench.backend import Backend
from attnbench.problem import ALiBi, Bias, Sink, Softcap


@pytest.fixture
def qkv(device: str) -> tuple[Tensor, ...]:
    """q [1, 2, 24, 16], and k and v of one head that both share; in memory tokens come before heads."""
    generator = torch.Generator().manual_seed(0)
    made = (torch.randn(1, 24, heads, 16, generator=generator) for heads in (2, 1, 1))
    return tuple(x.to(device).transpose(1, 2) for x in made)


def test_opcheck_finds_nothing_wrong(triton_backend: Backend, qkv: tuple[Tensor, ...]) -> None:
    from attnbench_backends.triton import op

    q, k, v = (x.requires_grad_() for x in qkv)
    bias = torch.randn(1, 2, 24, 24, device=q.device, requires_grad=True)
    arguments = (q, k, v, [bias], "causal", "bias(hqk);softcap(3)", 0.25)
    assert set(torch.library.opcheck(op._attend, arguments).values()) == {"SUCCESS"}


class Layer(torch.nn.Module):
    """Causal attention with two query heads a key head, a learned bias and learned sinks, on packed projections."""

    def __init__(self, tokens: int, heads: int = 4, dim: int = 16) -> None:
        super().__init__()
        self.heads, self.dim = heads, dim
        self.into = torch.nn.Linear(heads * dim, 2 * heads * dim)
        self.out = torch.nn.Linear(heads * dim, heads * dim)
        self.bias = torch.nn.Parameter(torch.randn(1, heads, 1, tokens))
        self.sinks = torch.nn.Parameter(torch.randn(heads))

    def forward(self, x: Tensor) -> Tensor:
        from attnbench_backends.triton.op import attend

        split = self.into(x).unflatten(-1, (2 * self.heads, self.dim)).transpose(1, 2)  # [B, H + 2 Hkv, S, D]
        q, k, v = split.split([self.heads, self.heads // 2, self.heads // 2], dim=1)
        out, lse = attend(q, k, v, mask="causal & window(9, 0)", scores=(Sink(self.sinks), Bias(self.bias)))
        return self.out(out.transpose(1, 2).flatten(2)) * lse.mean()


def test_a_compiled_function_is_one_graph_with_the_same_bits(
    triton_backend: Backend, qkv: tuple[Tensor, ...]
) -> None:
    from attnbench_backends.triton.op import attend

    def model(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q * 2, k, v, mask="causal & window(5, 0)", scores=(ALiBi(), Softcap(4.0)))[0] + 1

    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*qkv), model(*qkv))


def test_a_compiled_layer_trains_with_the_same_bits(triton_backend: Backend, device: str) -> None:
    torch.manual_seed(0)
    layer = Layer(tokens=24).to(device)
    x = torch.randn(2, 24, 64, device=device, requires_grad=True)
    leaves = (x, *layer.parameters())
    runs = []
    for called in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        y = called(x)
        runs.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))
    assert all(gradient.abs().max() > 0 for gradient in runs[0])


def test_the_backward_is_shaped_and_laid_out_as_torch_is_told(
    triton_backend: Backend, qkv: tuple[Tensor, ...]
) -> None:
    from attnbench_backends.triton import op

    (q, k, v), mask, scores = qkv, "causal", "bias(hqk)"
    bias = torch.randn(1, 2, 24, 24, device=q.device)
    out, lse = op._attend(q, k, v, [bias], mask, scores, 0.25)
    for dlse in (None, torch.randn_like(lse)):
        arguments = (q, k, v, [bias], out, lse, torch.randn_like(out), dlse, mask, scores, 0.25)
        checks = ("test_schema", "test_faketensor")
        results = torch.library.opcheck(op._attend_backward, arguments, test_utils=checks)
        assert set(results.values()) == {"SUCCESS"}
