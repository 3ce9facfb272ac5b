"""Dropout on the weights: the kept share, the scaling, the gradient, the seed, the refusals."""

from __future__ import annotations

import math

import pytest
import torch

from attnbench.errors import AttnbenchError
from attnbench.layer import MultiheadAttention
from attnbench.problem import Causal

DROPPING = ("naive", "per_head", "mask_multiply")


def a_layer(backend: str, dropout: float = 0.3) -> MultiheadAttention:
    torch.manual_seed(0)
    return MultiheadAttention(16, 2, dropout=dropout, backend=backend)


@pytest.mark.parametrize("backend", DROPPING)
@pytest.mark.parametrize("dropout", [0.1, 0.5])
def test_the_kept_share_and_the_scaling_are_as_asked(backend: str, dropout: float) -> None:
    layer = a_layer(backend, dropout)
    x = torch.randn(8, 64, 16)
    _, whole = layer.eval()(x, x, x, need_weights=True, average_attn_weights=False)
    _, dropped = layer.train()(x, x, x, need_weights=True, average_attn_weights=False)
    kept = dropped != 0
    n = kept.numel()
    share = float(kept.double().mean())
    # Six standard deviations of a binomial share: a right layer fails once in 5e8 seeds.
    assert abs(share - (1 - dropout)) < 6 * math.sqrt(dropout * (1 - dropout) / n)
    ratio = dropped[kept] / whole[kept]
    assert torch.allclose(ratio, torch.full_like(ratio, 1 / (1 - dropout)), rtol=1e-6)


@pytest.mark.parametrize("backend", DROPPING)
def test_the_mean_over_seeds_is_the_output_without_dropout(backend: str) -> None:
    layer = a_layer(backend)
    x = torch.randn(4, 12, 16)
    with torch.no_grad():
        whole = layer.eval()(x, x, x)[0]
        layer.train()
        runs = torch.stack([layer(x, x, x)[0] for _ in range(400)])
    z = (runs.mean(0) - whole) / (runs.std(0) / math.sqrt(len(runs)))
    # 768 means of 400 draws, near normal: the largest of them lies at about 3.2, beyond 6 once in 1e6 seeds.
    assert float(z.abs().max()) < 6
    assert abs(float(z.square().mean()) - 1) < 0.5


@pytest.mark.parametrize("backend", DROPPING)
def test_the_output_and_gradient_are_those_of_the_weights_that_were_kept(backend: str) -> None:
    layer = a_layer(backend)
    x = torch.randn(2, 10, 16, requires_grad=True)
    torch.manual_seed(5)
    out, weights = layer(x, x, x, mask=Causal(), need_weights=True, average_attn_weights=False)
    dx = torch.autograd.grad(out.square().sum(), x)[0]
    y = x.detach().double().requires_grad_()
    double = torch.nn.Linear(16, 48).double()
    double.load_state_dict({"weight": layer.in_proj_weight, "bias": layer.in_proj_bias})
    q, k, v = (part.unflatten(-1, (2, 8)).transpose(1, 2) for part in double(y).split(16, dim=-1))
    scores = (q @ k.transpose(-1, -2) / math.sqrt(8)).masked_fill(
        torch.ones(10, 10).triu(1).bool(), -math.inf
    )
    keep = (
        weights.detach() != 0
    ).double() / 0.7  # zero above the diagonal too, where the weight is zero anyway
    heads = (torch.softmax(scores, -1) * keep) @ v
    expected = (
        heads.transpose(1, 2).flatten(2) @ layer.out_proj.weight.double().T + layer.out_proj.bias.double()
    )
    expected_dx = torch.autograd.grad(expected.square().sum(), y)[0]
    # float32 against float64 through sums of at most 48 terms of size one.
    assert torch.allclose(out.double(), expected, atol=64 * 48 * 2.0**-24)
    assert torch.allclose(dx.double(), expected_dx, atol=64 * 48 * 2.0**-24)


def test_the_same_seed_drops_the_same_weights_on_every_backend() -> None:
    x = torch.randn(2, 10, 16)
    outs = []
    for backend in (*DROPPING, "naive"):
        layer = a_layer(backend)
        torch.manual_seed(11)
        outs.append(layer(x, x, x)[0])
    assert torch.equal(outs[0], outs[-1])
    torch.manual_seed(12)
    other = a_layer("naive")
    torch.manual_seed(12)
    assert not torch.allclose(other(x, x, x)[0], outs[0], atol=1e-3)
    for out in outs[1:-1]:
        assert torch.allclose(out, outs[0], atol=64 * 16 * 2.0**-24)


@pytest.mark.parametrize("backend", ["sdpa_math", "sdpa_flash"])
def test_a_backend_without_dropout_refuses_it_in_training_and_runs_otherwise(backend: str) -> None:
    layer = a_layer(backend)
    x = torch.randn(2, 10, 16)
    with pytest.raises(AttnbenchError, match=f"{backend} has no dropout on the attention weights"):
        layer(x, x, x)
    layer.eval()(x, x, x)
    a_layer(backend, dropout=0.0)(x, x, x)
