"""Every bad argument gets a message that says what, where and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.errors import AttnbenchError, LayerError, UnknownBackend
from attnbench.layer import MultiheadAttention
from attnbench.problem import Causal, Explicit, Full, Padding

X = torch.randn(2, 5, 24)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"embed_dim": 25}, "no multiple of num_heads 3.*take embed_dim 24 or 27"),
        ({"num_heads": 0}, "num_heads is a whole number of at least 1, not 0"),
        ({"embed_dim": 24.0}, "embed_dim is a whole number"),
        ({"kv_heads": 2}, "does not divide num_heads 3.*take one of 1, 3"),
        ({"dropout": 1.0}, "at least 0 and below 1"),
    ],
)
def test_a_layer_that_cannot_be_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(LayerError, match=message):
        MultiheadAttention(**({"embed_dim": 24, "num_heads": 3} | arguments))


def test_an_unknown_backend_is_refused_when_the_layer_is_made() -> None:
    with pytest.raises(UnknownBackend, match="did you mean 'naive'"):
        MultiheadAttention(24, 3, backend="naiv")


@pytest.mark.parametrize(
    ("query", "key", "value", "message"),
    [
        (X[0], X, X, r"query is \[batch, length, embed_dim\], not of shape \[5, 24\]"),
        (X, torch.randn(2, 5, 16), X, "key has 16 features, but embed_dim is 24.*project it"),
        (X, X, X[:1], "value has batch 1, but query has 2"),
        (X, X, X[:, :3], "key has 5 tokens, but value has 3"),
        (X.double(), X, X, "query is torch.float64 on cpu, but the parameters are torch.float32"),
        (X[:, :0], X, X, "at least one token"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(query: Any, key: Any, value: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        MultiheadAttention(24, 3)(query, key, value)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        ("causal", "mask of the algebra .* or a bool tensor, not a str"),
        (torch.zeros(2, 5), "bool, True where a query may attend, not torch.float32.*mask == 0"),
        (torch.ones(2, 5, dtype=torch.uint8), r"not torch.uint8.*mask\.bool\(\)"),
        (torch.ones(2, 4, dtype=torch.bool), r"padding mask \[batch, k_len\] = \[2, 5\], not \[2, 4\]"),
        (torch.ones(5, 5, dtype=torch.bool), r"pass mask\[None, None\]"),
        (torch.ones(6, 5, 5, dtype=torch.bool), r"unflatten\(0, \(batch, heads\)\), and True means"),
        (torch.ones(2, 2, 5, 5, dtype=torch.bool), "heads is 3"),
    ],
)
def test_masks_of_the_wrong_shape_dtype_or_meaning_are_refused(mask: Any, message: str) -> None:
    with pytest.raises(LayerError, match=message):
        MultiheadAttention(24, 3)(X, X, X, mask=mask)


@pytest.mark.parametrize("word", ["key_padding_mask", "attn_mask", "is_causal"])
def test_torchs_words_for_masks_are_refused_with_ours(word: str) -> None:
    with pytest.raises(LayerError, match=f"forward has no {word}: pass mask="):
        MultiheadAttention(24, 3)(X, X, X, **{word: True})


def test_a_state_with_bias_kv_is_refused() -> None:
    state = torch.nn.MultiheadAttention(24, 3, add_bias_kv=True).state_dict()
    with pytest.raises(LayerError, match="add_bias_kv=True cannot be loaded"):
        MultiheadAttention(24, 3).load_state_dict(state)


def test_a_mask_that_does_not_fit_the_lengths_says_so() -> None:
    with pytest.raises(AttnbenchError, match="padding has 1 lengths but batch is 2"):
        MultiheadAttention(24, 3)(X, X, X, mask=Padding([3]))


def test_a_refusal_of_the_backend_names_the_backend_and_the_reason() -> None:
    layer = MultiheadAttention(24, 3, kv_heads=1, backend="torch_mha")
    with pytest.raises(AttnbenchError, match="torch_mha refuses this case: needs as many key heads"):
        layer(X, X, X)


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]], Padding([5, 2])),
        ([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]], Padding([5, 2], "left")),
        ([[1, 1, 1, 1, 1], [1, 1, 1, 1, 1]], Full()),
        ([[1, 1, 1, 1, 1], [0, 0, 0, 0, 0]], Padding([5, 0])),
    ],
)
def test_a_padding_tensor_becomes_the_mask_it_means(flags: list[list[int]], expected: Any) -> None:
    from attnbench.layer.mask_argument import as_mask

    assert as_mask(torch.tensor(flags).bool(), 2, 3, 5, 5) == expected


def test_any_other_tensor_becomes_an_explicit_mask_that_allows_the_same_pairs() -> None:
    from attnbench.layer.mask_argument import as_mask

    holes = torch.tensor([[1, 0, 1, 1, 1], [1, 1, 0, 1, 1]]).bool()
    found = as_mask(holes, 2, 3, 4, 5)
    assert isinstance(found, Explicit)
    dense = found.materialize(2, 3, 4, 5)
    assert torch.equal(dense.expand(2, 3, 4, 5), holes[:, None, None].expand(2, 3, 4, 5))
    causal = Causal().materialize(1, 1, 5, 5)
    assert torch.equal(as_mask(causal, 2, 3, 5, 5).materialize(2, 3, 5, 5), causal)
