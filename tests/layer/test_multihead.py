"""The layer equals torch's, parameter for parameter and number for number, in every option they share."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from attnbench.layer import MultiheadAttention
from attnbench.models.rounding import Spread, exact_attention, spread
from attnbench.problem import Causal, Full, Mask, Padding, SlidingWindow

E, H = 24, 3
BACKENDS = ("naive", "per_head", "mask_multiply", "sdpa_math", "sdpa_flash")


def a_pair(bias: bool = True, batch_first: bool = True, **options: object):
    """Ours and torch's with the same parameters, none of them zero."""
    torch.manual_seed(3)
    theirs = torch.nn.MultiheadAttention(E, H, bias=bias, batch_first=batch_first)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    ours = MultiheadAttention(E, H, bias=bias, batch_first=batch_first, **options)  # type: ignore[arg-type]
    ours.load_state_dict(theirs.state_dict())
    return ours, theirs


def gradients(
    call: Callable[..., Tensor], tensors: list[Tensor], layer: torch.nn.Module
) -> dict[str, Tensor]:
    """The output, and the gradients of inputs and parameters, by name."""
    tensors = [x.detach().clone().requires_grad_() for x in tensors]
    layer.zero_grad()
    out = call(*tensors)
    # Weights of the loss that no permutation of the output leaves alone.
    dout = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).sin().reshape(out.shape).to(out.dtype)
    (out * dout).sum().backward()
    found = {"out": out} | {f"d_input{n}": x.grad for n, x in enumerate(tensors)}
    found |= {f"d_{name}": p.grad for name, p in layer.named_parameters()}
    return {name: x for name, x in found.items() if x is not None}


def exact(
    layer: MultiheadAttention, tensors: list[Tensor], mask: Mask | Tensor, same: bool
) -> dict[str, Spread]:
    """Out and gradients in float64, and what rounding to float32 may do to them."""
    double = MultiheadAttention(
        E,
        H,
        kv_heads=layer.kv_heads,
        bias=layer.in_proj_bias is not None,
        batch_first=layer.batch_first,
        backend=exact_attention,
        dtype=torch.float64,
    )
    double.load_state_dict(layer.state_dict())
    doubles = [x.double() for x in tensors]

    def call(*xs: Tensor) -> Tensor:
        return double(*(xs * 3 if same else xs), mask=mask)[0]

    return spread(lambda: gradients(call, doubles, double), "fp32")


def worst(budget: dict[str, Spread], found: dict[str, Tensor]) -> dict[str, float]:
    assert set(found) == set(budget)
    return {name: budget[name].over_budget(x) for name, x in found.items()}


MASKS = {
    "full": (Full(), None),
    "causal": (Causal("top_left"), "causal"),
    "padding": (Padding([7, 4]), "padding"),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("same", [True, False], ids=["self", "cross"])
@pytest.mark.parametrize(("bias", "batch_first"), [(True, True), (False, False)], ids=["bias", "no-bias"])
def test_output_and_gradients_agree_with_torch_within_the_noise_of_rounding(
    backend: str, mask: str, same: bool, bias: bool, batch_first: bool
) -> None:
    ours, theirs = a_pair(bias=bias, batch_first=batch_first, backend=backend)
    generator = torch.Generator().manual_seed(1)
    shape = (2, 7, E)
    tensors = [torch.randn(shape, generator=generator) for _ in range(1 if same else 3)]
    if not batch_first:
        tensors = [x.transpose(0, 1) for x in tensors]
    our_mask, kind = MASKS[mask]
    words: dict[str, Tensor] = {}
    if kind == "causal":
        words["attn_mask"] = torch.ones(7, 7).triu(1).bool()  # torch: True is forbidden
    elif kind == "padding":
        words["key_padding_mask"] = torch.arange(7)[None] >= torch.tensor([[7], [4]])
    budget = exact(ours, tensors, our_mask, same)
    mine = gradients(lambda *xs: ours(*(xs * 3 if same else xs), mask=our_mask)[0], tensors, ours)
    torchs = gradients(lambda *xs: theirs(*(xs * 3 if same else xs), **words)[0], tensors, theirs)
    over = worst(budget, mine)
    assert max(over.values()) <= 1, over
    over = worst(budget, torchs)
    assert max(over.values()) <= 1, over


def test_the_budget_sees_a_relative_error_of_one_in_ten_thousand() -> None:
    ours, _ = a_pair()
    x = torch.randn(2, 7, E, generator=torch.Generator().manual_seed(1))

    def off(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: object, scale: float) -> Tensor:
        return exact_attention(q, k, v, mask=mask, scale=scale * 1.0001)

    budget = exact(ours, [x], Full(), True)
    ours.backend = off
    over = worst(budget, gradients(lambda x: ours(x, x, x)[0], [x], ours))
    assert over["out"] > 1
    assert over["d_input0"] > 1


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_grouped_heads_are_the_whole_layer_with_repeated_key_heads(kv_heads: int, backend: str) -> None:
    torch.manual_seed(0)
    grouped = MultiheadAttention(32, 4, kv_heads=kv_heads, backend=backend)
    assert set(grouped.state_dict()) == {
        *("q_proj_weight", "k_proj_weight", "v_proj_weight", "in_proj_bias"),
        *("out_proj.weight", "out_proj.bias"),
    }
    for parameter in grouped.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    whole = torch.nn.MultiheadAttention(32, 4, batch_first=True, dtype=torch.float64)

    def repeated(x: Tensor) -> Tensor:
        return x.unflatten(0, (kv_heads, 8)).repeat_interleave(4 // kv_heads, dim=0).flatten(0, 1)

    with torch.no_grad():
        kv = kv_heads * 8
        assert grouped.in_proj_bias is not None
        whole.in_proj_weight.copy_(
            torch.cat(
                [grouped.q_proj_weight, repeated(grouped.k_proj_weight), repeated(grouped.v_proj_weight)]
            )
        )
        b = grouped.in_proj_bias
        whole.in_proj_bias.copy_(torch.cat([b[:32], repeated(b[32 : 32 + kv]), repeated(b[32 + kv :])]))
        whole.out_proj.load_state_dict(grouped.out_proj.state_dict())
    x = torch.randn(2, 9, 32)
    expected = whole(x.double(), x.double(), x.double())[0]
    double = MultiheadAttention(32, 4, kv_heads=kv_heads, backend=exact_attention, dtype=torch.float64)
    double.load_state_dict(grouped.state_dict())
    budget = spread(lambda: {"out": double(x.double(), x.double(), x.double())[0]}, "fp32")["out"]
    assert torch.allclose(budget.value, expected, rtol=1e-12, atol=1e-12)  # both are float64
    assert budget.over_budget(grouped(x, x, x)[0]) <= 1


layers = st.builds(
    lambda heads, dim, bias, batch_first: (heads * dim, heads, bias, batch_first),
    st.integers(1, 6),
    st.integers(1, 8),
    st.booleans(),
    st.booleans(),
)


@given(layers, st.integers(0, 2**31))
@settings(max_examples=50, deadline=None)
def test_the_state_goes_to_torch_and_back_unchanged(layer: tuple[int, int, bool, bool], seed: int) -> None:
    embed_dim, heads, bias, batch_first = layer
    torch.manual_seed(seed)
    ours = MultiheadAttention(embed_dim, heads, bias=bias, batch_first=batch_first)
    torch.manual_seed(seed)
    theirs = torch.nn.MultiheadAttention(embed_dim, heads, bias=bias, batch_first=batch_first)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for name, parameter in theirs.state_dict().items():
        assert torch.equal(parameter, ours.state_dict()[name])  # the same seed, the same start
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    back = torch.nn.MultiheadAttention(embed_dim, heads, bias=bias, batch_first=batch_first)
    back.load_state_dict(ours.state_dict())
    for name, parameter in theirs.state_dict().items():
        assert torch.equal(parameter, back.state_dict()[name])
    shape = (2, 3, embed_dim)
    x = torch.randn(shape, dtype=torch.float64)
    ours, back = ours.double(), back.double()
    ours.backend = exact_attention
    assert torch.allclose(ours(x, x, x)[0], back(x, x, x)[0], rtol=1e-10, atol=1e-10)


def test_weights_on_request_are_torchs_averaged_or_by_head() -> None:
    ours, theirs = a_pair(backend="sdpa_flash")
    x = torch.randn(2, 7, E, generator=torch.Generator().manual_seed(1))
    for average, shape in ((True, (2, 7, 7)), (False, (2, H, 7, 7))):
        out, weights = ours(x, x, x, need_weights=True, average_attn_weights=average)
        _, expected = theirs(x, x, x, need_weights=True, average_attn_weights=average)
        assert weights.shape == shape
        # A weight is at most 1 and follows from a score of a few dozen float32 roundings.
        assert (weights - expected).abs().max() < 64 * 2.0**-24
        assert torch.equal(out, ours(x, x, x)[0])
    assert ours(x, x, x)[1] is None


def test_a_query_without_a_key_gets_the_output_bias_alone() -> None:
    ours, _ = a_pair()
    x = torch.randn(2, 4, E)
    out, _ = ours(x, x, x, mask=Padding([4, 0]))
    assert torch.equal(out[1], ours.out_proj.bias.expand(4, E))


def test_low_precision_and_autocast_run_on_the_backend() -> None:
    ours, _ = a_pair(backend="sdpa_flash")
    x = torch.randn(2, 7, E)
    budget = exact(ours, [x], Full(), True)["out"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = ours(x, x, x)[0]
    half = ours.bfloat16()(x.bfloat16(), x.bfloat16(), x.bfloat16())[0]
    assert cast.dtype == half.dtype == torch.bfloat16
    double = MultiheadAttention(E, H, backend=exact_attention, dtype=torch.float64)
    double.load_state_dict(ours.state_dict())  # the rounded parameters
    y = x.bfloat16().double()
    rounded = spread(lambda: {"out": double(y, y, y)[0]}, "bf16")["out"]
    assert rounded.over_budget(half) <= 1
    assert budget.over_budget(half) > 1  # bf16 is not fp32


def test_a_case_is_prepared_once_however_often_and_in_however_many_layers_it_is_called() -> None:
    from attnbench.layer.attend import Attend, attend_with, forget

    forget()
    layers = [MultiheadAttention(E, H, backend="sdpa_math") for _ in range(3)]
    x = torch.randn(2, 11, E)
    window = Causal() & SlidingWindow(3, 0)
    for _ in range(2):
        y = x
        for layer in layers:
            y = layer(y, y, y, mask=window)[0]
        y.sum().backward()
    attend = attend_with("sdpa_math")
    assert isinstance(attend, Attend)
    assert attend.prepared == 1
    layers[0](x, x, x)
    assert attend.prepared == 2


def test_layers_of_one_case_keep_gradients_of_their_own() -> None:
    ours, _ = a_pair()
    xs = [torch.randn(1, 5, E, requires_grad=True) for _ in range(2)]
    alone = []
    for x in xs:
        alone.append(torch.autograd.grad(ours(x, x, x)[0].square().sum(), x)[0])
    outs = [ours(x, x, x)[0] for x in xs]  # both graphs alive, the first used last
    together = [
        torch.autograd.grad(out.square().sum(), x)[0] for out, x in zip(outs[::-1], xs[::-1], strict=True)
    ]
    assert torch.equal(together[1], alone[0])
    assert torch.equal(together[0], alone[1])
