"""Unchanged models run on a backend: every call is counted, none is silently skipped."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as taken_earlier

import attnbench as ab
from attnbench.errors import AttnbenchError, LayerError
from attnbench.layer.sdpa_mask import MaskReader, recognised
from attnbench.models.rounding import exact_attention, spread
from attnbench.problem import Causal, Explicit, Extent, Full, Mask, Padding


def an_encoder() -> torch.nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    return torch.nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def qkv(*shape: int, **options: Any) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, **options) for _ in range(3)]


@pytest.mark.parametrize("backend", ["naive", "mask_multiply", "sdpa_math", "sdpa_flash"])
@pytest.mark.parametrize("training", [True, False])
def test_a_transformer_encoder_of_torch_agrees_in_output_and_gradients(backend: str, training: bool) -> None:
    model = an_encoder().train(training)
    x = torch.randn(3, 9, 16)
    padding = torch.arange(9)[None] >= torch.tensor([[9], [5], [7]])
    # Not the sum of squares: what a layer norm gives has one size, so its exact gradient is 0; the rest is rounding.
    weights = torch.rand(21, 16)

    def program(model: torch.nn.Module, x: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        out = model(x, src_key_padding_mask=padding)
        real = out[~padding]
        (real * weights.to(real)).sum().backward()
        return {"out": real} | {
            f"d {name}": p.grad for name, p in model.named_parameters() if p.grad is not None
        }

    with ab.use_backend(backend) as routed:
        found = program(model, x)
    assert routed.count == 2
    assert next(iter(routed.kinds)) == "q 9, k 9, heads 2:2, padding"
    with ab.use_backend(exact_attention) as exactly:
        budget = spread(lambda: program(model.double(), x.double()), "fp32")
    assert exactly.count == 2 * 17
    model.float()
    over = {name: budget[name].over_budget(y) for name, y in found.items()}
    assert max(over.values()) <= 1, over
    over = {name: budget[name].over_budget(y) for name, y in program(model, x).items()}
    assert max(over.values()) <= 1, over  # torch's own


def test_what_was_computed_is_the_backends() -> None:
    def zeros(q: Tensor, k: Tensor, v: Tensor, **words: Any) -> Tensor:
        return torch.zeros_like(q)

    q, k, v = qkv(1, 2, 4, 8)
    with ab.use_backend(zeros) as routed:
        assert not F.scaled_dot_product_attention(q, k, v).any()
        assert not torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).any()
        assert not taken_earlier(q, k, v).any()
    assert routed.count == 3
    assert "3 calls rerouted to zeros" in str(routed)


def test_everything_is_as_before_afterwards_even_after_an_error() -> None:
    before, fast = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    with pytest.raises(ZeroDivisionError), ab.use_backend("naive"):
        raise ZeroDivisionError
    assert F.scaled_dot_product_attention is before
    assert torch.backends.mha.get_fastpath_enabled() == fast


def test_the_inner_of_two_backends_counts() -> None:
    q, k, v = qkv(1, 2, 4, 8)
    with ab.use_backend("naive") as outer, ab.use_backend("per_head") as inner:
        F.scaled_dot_product_attention(q, k, v)
    assert (outer.count, inner.count) == (0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"dropout_p": 0.5}, "sdpa_flash has no dropout"),
        ({"attn_mask": torch.ones(4, 5).bool()}, "does not broadcast"),
        ({"attn_mask": torch.zeros(4, 4).int()}, "bool or floating"),
        ({"attn_mask": torch.full((4, 4), torch.finfo(torch.float32).min)}, "pass a bool mask, or -inf"),
        ({"attn_mask": torch.ones(4, 4).bool(), "is_causal": True}, "a mask or is_causal, not both"),
    ],
)
def test_what_the_backend_does_not_take_is_refused_loudly(words: dict[str, Any], message: str) -> None:
    q, k, v = qkv(1, 2, 4, 8)
    with ab.use_backend("sdpa_flash") as routed:
        with pytest.raises(
            AttnbenchError, match=f"sdpa_flash refuses a call of scaled_dot_product.*{message}"
        ):
            F.scaled_dot_product_attention(q, k, v, **words)
        assert routed.count == 0


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (qkv(1, 2, 4, 8, dtype=torch.float64), r"not torch\.float64"),
        (qkv(4, 8), "3 or 4 dimensions, not 2"),
    ],
    ids=["float64", "two-dimensions"],
)
def test_tensors_that_no_case_has_are_refused(tensors: list[Tensor], message: str) -> None:
    with ab.use_backend("naive"), pytest.raises(AttnbenchError, match=message):
        F.scaled_dot_product_attention(tensors[0], tensors[1], tensors[2])


def test_calls_are_left_to_torch_only_where_that_was_asked_for_and_are_counted_by_reason() -> None:
    q, k, v = qkv(1, 2, 4, 8)
    with ab.use_backend("sdpa_flash", otherwise="torch") as routed:
        F.scaled_dot_product_attention(q, k, v, dropout_p=0.5)
        F.scaled_dot_product_attention(q, k, v)
    assert routed.count == 1
    assert dict(routed.left_to_torch) == {"sdpa_flash has no dropout on the attention weights": 1}
    with (
        pytest.raises(LayerError, match="'refuse' or 'torch', not 'maybe'"),
        ab.use_backend("naive", otherwise="maybe"),
    ):
        pass


@pytest.mark.parametrize("backend", ["naive", "sdpa_math", "per_head"])
@pytest.mark.parametrize(
    "words",
    [
        {},
        {"is_causal": True},
        {"scale": 0.3},
        {"attn_mask": torch.randn(6, 9, generator=torch.Generator().manual_seed(0))},
        {"attn_mask": torch.tensor([[0.0, -math.inf] * 4 + [0.0]]).expand(6, 9).clone()},
        {"attn_mask": torch.randn(2, 1, 6, 9, generator=torch.Generator().manual_seed(0)) > 0},
    ],
    ids=["plain", "causal", "scale", "bias", "cut", "holes"],
)
def test_every_word_of_torchs_function_means_what_it_means_there(backend: str, words: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 4, 6, 8, generator=generator)
    k, v = (torch.randn(2, 2, 9, 8, generator=generator) for _ in range(2))
    double: dict[str, Any] = {
        n: x.double() if isinstance(x, Tensor) and x.dtype == torch.float32 else x for n, x in words.items()
    }
    double["enable_gqa"] = True
    expected = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), **double)
    with ab.use_backend(backend) as routed:
        found = F.scaled_dot_product_attention(q, k, v, **(words | {"enable_gqa": True}))
    assert routed.count == 1
    # float32 against float64: weights sum to 1, so the error is a few dozen roundings of the largest value.
    assert (found - expected).abs().max() < 32 * 2.0**-24 * float(v.abs().max())


def test_dropout_is_drawn_from_torchs_seed() -> None:
    q, k, v = qkv(2, 2, 16, 8)
    with ab.use_backend("naive"):
        torch.manual_seed(4)
        first = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
        torch.manual_seed(4)
        again = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
        other = F.scaled_dot_product_attention(q, k, v, dropout_p=0.4)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_the_gradient_of_a_float_mask_comes_back() -> None:
    q, k, v = qkv(2, 2, 6, 8)
    bias = torch.randn(1, 2, 6, 6, requires_grad=True)
    with ab.use_backend("naive"):
        found = torch.autograd.grad(F.scaled_dot_product_attention(q, k, v, bias).square().sum(), bias)[0]
    bias64 = bias.detach().double().requires_grad_()
    out = F.scaled_dot_product_attention(q.double(), k.double(), v.double(), bias64)
    expected = torch.autograd.grad(out.square().sum(), bias64)[0]
    assert torch.allclose(found.double(), expected, atol=1024 * 2.0**-24)


EXTENT = Extent(2, 3, 5, 7)


@pytest.mark.parametrize(
    "mask",
    [
        Full(),
        Causal(),
        Causal("top_left"),
        Padding([7, 4]),
        Padding([7, 4], "left"),
        Causal() & Padding([7, 4]),
        Causal() & Padding([7, 4], "left"),
    ],
    ids=str,
)
def test_masks_that_models_make_are_recognised(mask: Mask) -> None:
    flags = mask.materialize(2, 3, 5, 7).expand(2, 3, 5, 7)
    found = recognised(flags, EXTENT)
    assert torch.equal(found.materialize(2, 3, 5, 7).expand(2, 3, 5, 7), flags)
    assert not found.kinds & {"explicit"}


def test_a_mask_with_one_odd_pair_is_explicit() -> None:
    flags = Causal().materialize(1, 1, 5, 7).clone()
    flags[0, 0, 0, 6] = True
    assert isinstance(recognised(flags, EXTENT), Explicit)


def test_a_mask_that_was_changed_in_place_is_read_again() -> None:
    read = MaskReader()
    flags = torch.ones(2, 1, 5, 7).bool()
    q, k = torch.zeros(2, 3, 5, 8), torch.zeros(2, 3, 7, 8)
    assert read(flags, q, k)[0] == Full()
    flags[1, :, :, 4:] = False
    assert read(flags, q, k)[0] == Padding([7, 4])


MODELS = ("llama", "bert", "gpt_oss", "gemma2")


def a_model(transformers: Any, kind: str, implementation: str) -> torch.nn.Module:
    torch.manual_seed(0)
    small: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "intermediate_size": 48,
    }
    small |= {"num_attention_heads": 4, "max_position_embeddings": 64, "attn_implementation": implementation}
    grouped = small | {"num_key_value_heads": 2, "head_dim": 8}
    if kind == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**grouped))
    if kind == "bert":
        drop = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return transformers.BertForMaskedLM(transformers.BertConfig(**small, **drop))
    if kind == "gemma2":
        return transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**grouped, sliding_window=8))
    few: dict[str, Any] = {"num_local_experts": 2, "num_experts_per_tok": 1, "sliding_window": 8}
    few |= {"experts_implementation": "eager"}  # the grouped product has no float64
    return transformers.GptOssForCausalLM(transformers.GptOssConfig(**grouped, **few))


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("backend", ["naive", "per_head", "sdpa_math"])
def test_a_transformers_model_agrees_in_logits_and_gradients(kind: str, backend: str) -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (pip install transformers)"
    )
    if backend == "sdpa_math" and kind in ("gpt_oss", "gemma2"):
        pytest.skip("sdpa_math has no sink and no softcap")
    through_sdpa = kind in ("llama", "bert")
    with ab.use_backend("naive"):  # makes the name known
        model = a_model(transformers, kind, "sdpa" if through_sdpa else "attnbench")
    tokens = torch.randint(0, 97, (2, 12), generator=torch.Generator().manual_seed(1))
    real = (torch.arange(12)[None] < torch.tensor([[12], [9]])).long()

    def program(model: torch.nn.Module) -> dict[str, Tensor]:
        model.zero_grad()
        logits = model(input_ids=tokens, attention_mask=real).logits[real.bool()]
        F.cross_entropy(logits, tokens[real.bool()]).backward()
        return {"logits": logits.detach()} | {
            n: p.grad for n, p in model.named_parameters() if p.grad is not None
        }

    with ab.use_backend(backend) as routed:
        found = program(model)
    assert routed.count == 2
    assert not any("explicit" in name for name in routed.kinds if kind in ("llama", "bert"))
    eager = a_model(transformers, kind, "eager")
    eager.load_state_dict(model.state_dict())
    budget = spread(lambda: program(eager.double()), "fp32", runs=8)
    assert set(budget) == set(found)
    over = {name: budget[name].over_budget(x) for name, x in found.items()}
    assert max(over.values()) <= 1, sorted(over.items(), key=lambda item: -item[1])[:5]


def test_a_transformers_model_outside_the_context_says_what_to_do() -> None:
    transformers = pytest.importorskip(
        "transformers", reason="transformers is not installed (pip install transformers)"
    )
    with ab.use_backend("naive"):
        model = a_model(transformers, "llama", "attnbench")
    with pytest.raises(LayerError, match=r"with ab\.use_backend\(NAME\)"):
        model(input_ids=torch.zeros(1, 4).long())
