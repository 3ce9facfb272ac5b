"""Generation with a KV cache gives what full attention gives at each position."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from attnbench.errors import LayerError
from attnbench.layer import KVCache, MultiheadAttention
from attnbench.models.rounding import Spread, exact_attention, spread
from attnbench.problem import Causal, Mask, Padding, SlidingWindow

LENGTH = 13


def a_layer(backend: str, kv_heads: int = 4) -> MultiheadAttention:
    torch.manual_seed(0)
    return MultiheadAttention(32, 4, kv_heads=kv_heads, backend=backend)


def expected(layer: MultiheadAttention, x: Tensor, mask: Mask | Tensor) -> Spread:
    double = MultiheadAttention(32, 4, kv_heads=layer.kv_heads, backend=exact_attention, dtype=torch.float64)
    double.load_state_dict(layer.state_dict())
    y = x.double()
    return spread(lambda: {"out": double(y, y, y, mask=mask)[0]}, "fp32")["out"]


@pytest.mark.parametrize("backend", ["naive", "per_head", "mask_multiply", "sdpa_math", "sdpa_flash"])
@pytest.mark.parametrize("kv_heads", [4, 1])
@pytest.mark.parametrize("mask", [Causal(), Causal() & SlidingWindow(4, 0)], ids=str)
@pytest.mark.parametrize("prompt", [1, 6])
def test_prefill_then_decode_is_full_attention(backend: str, kv_heads: int, mask: Mask, prompt: int) -> None:
    layer = a_layer(backend, kv_heads)
    x = torch.randn(2, LENGTH, 32)
    cache = KVCache()
    with torch.no_grad():
        steps = [x[:, :prompt], *(x[:, t : t + 1] for t in range(prompt, LENGTH))]
        outs = [layer(step, step, step, mask=mask, cache=cache)[0] for step in steps]
    assert cache.length == LENGTH
    assert expected(layer, x, mask).over_budget(torch.cat(outs, dim=1)) <= 1


def test_a_prompt_padded_on_the_left_decodes_with_lengths_that_grow() -> None:
    layer = a_layer("naive")
    x = torch.randn(2, LENGTH, 32)
    real = torch.arange(LENGTH)[None] >= torch.tensor([[0], [3]])  # row 1 begins with three pads
    cache = KVCache(capacity=LENGTH)
    outs = []
    with torch.no_grad():
        for start, end in ((0, 6), *((t, t + 1) for t in range(6, LENGTH))):
            step = x[:, start:end]
            mask = Causal() & Padding([end, end - 3], "left")
            outs.append(layer(step, step, step, mask=mask, cache=cache)[0])
    whole = Causal() & Padding([LENGTH, LENGTH - 3], "left")
    over = expected(layer, x, whole)
    assert over.over_budget(torch.cat(outs, dim=1)) <= 1
    assert real[1, 3]  # the first real token of row 1


def test_a_wrong_step_is_seen() -> None:
    layer = a_layer("naive")
    x = torch.randn(2, LENGTH, 32)
    cache = KVCache()
    with torch.no_grad():
        layer(x[:, :6], x[:, :6], x[:, :6], mask=Causal(), cache=cache)
        skipped = layer(x[:, 7:8], x[:, 7:8], x[:, 7:8], mask=Causal(), cache=cache)[0]  # token 6 left out
    budget = expected(layer, x, Causal())
    assert Spread(budget.value[:, 7:8], budget.sigma[:, 7:8]).over_budget(skipped) > 1


def test_a_cache_refuses_gradients_and_another_batch() -> None:
    layer = a_layer("naive")
    x = torch.randn(2, 3, 32)
    cache = KVCache()
    with pytest.raises(LayerError, match=r"torch\.no_grad"):
        layer(x, x, x, cache=cache)
    with torch.no_grad():
        layer(x, x, x, cache=cache)
        with pytest.raises(LayerError, match=r"batch 2 and 4 heads, but .* batch 1"):
            layer(x[:1], x[:1], x[:1], cache=cache)
    with pytest.raises(LayerError, match="number of tokens"):
        KVCache(-1)
