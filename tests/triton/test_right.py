"""The kernel is right: forward and backward of every mask, score change and shape, by the float64 reference.

Without a GPU this runs in Triton's interpreter, on tiles of 16 to 32, so that empty, partial, full and ragged tiles,
lists and runs of tiles all occur at these lengths.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.problem import ALiBi, Bias, Explicit, RelativeBias, Sink, Softcap

MASKS = [
    "full",
    "causal",
    "causal(top_left)",
    "causal & window(9, 0)",
    "window(3, inf)",
    "padding(40, 0, 17)",
    "padding(1, 33, 40, left) & causal",
    "documents(10, 0, 1, 25)",
    "documents([40], [3, 37], [0, 12]) & causal",
    "prefix(7)",
    "global(5) | window(2, 2)",
    "block_sparse([[1, 0, 1], [0, 0, 0], [0, 1, 1]], 16)",
    "dilated(3) & causal",
    "~(causal & window(4, 0))",
    "~full",
]


@pytest.mark.parametrize("mask", MASKS)
def test_every_mask_is_right_forward_and_backward(judged: Any, mask: str) -> None:
    judged(mask=mask, batch=3 if "padding" in mask or "[40]" in mask else 1)


def test_an_explicit_mask_of_every_batch_row_and_head_is_right(judged: Any) -> None:
    generator = torch.Generator().manual_seed(1)
    judged(mask=Explicit(torch.rand(2, 2, 37, 45, generator=generator) > 0.6), batch=2, q_len=37, k_len=45)


@pytest.mark.parametrize(
    "lengths", [(1, 1), (1, 70), (70, 1), (2, 67), (33, 64), (64, 33)], ids=lambda lengths: "x".join(map(str, lengths))
)  # fmt: skip
def test_lengths_that_differ_and_fill_no_tile_are_right(judged: Any, lengths: tuple[int, int]) -> None:
    judged(mask="causal", q_len=lengths[0], k_len=lengths[1])


@pytest.mark.parametrize(
    "dims",
    [(40, 40), (72, 72), (80, 80), (96, 96), (192, 128), (16, 40), (256, 256), (5, 3)],
    ids=lambda dims: "x".join(map(str, dims)),
)
def test_head_dims_that_are_no_power_of_two_are_right(judged: Any, dims: tuple[int, int]) -> None:
    judged(mask="causal", head_dim=dims[0], v_dim=dims[1], q_len=33, k_len=33, q_heads=1)


@pytest.mark.parametrize("heads", [(4, 2), (6, 1), (5, 5)], ids=lambda heads: "x".join(map(str, heads)))
def test_query_heads_that_share_a_key_head_are_summed(judged: Any, heads: tuple[int, int]) -> None:
    judged(mask="causal", q_heads=heads[0], kv_heads=heads[1], q_len=20, k_len=33)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
@pytest.mark.parametrize("layout", ["bshd", "qkv_packed"])
def test_half_precision_in_other_layouts_is_right(judged: Any, dtype: str, layout: str) -> None:
    judged(mask="causal & window(20, 0)", dtype=dtype, layout=layout)


@pytest.mark.parametrize(
    "scores",
    [
        (Softcap(2.0),),
        (Softcap(50.0),),
        (ALiBi(),),
        (Sink(),),
        (Sink(100.0),),
        (Bias("hqk"),),
        (Bias("bk"),),
        (Bias("hq"),),
        (Bias("bh"),),
        (RelativeBias("t5(8, 20, bidirectional)"),),
        (RelativeBias("t5(8, 20, causal)"), Softcap(5.0)),
        (RelativeBias("grid(5, 8)"),),
        (Softcap(3.0), ALiBi(), Bias("qk"), RelativeBias("grid(8, 5)"), Sink()),
    ],
    ids=lambda scores: "-".join(score.label for score in scores),
)
def test_every_score_change_is_right_with_its_gradient(judged: Any, scores: Any) -> None:
    two_rows = any("b" in score.dims for score in scores if isinstance(score, Bias))
    judged(mask="causal", scores=scores, batch=2 if two_rows else 1)


def test_a_sink_gives_rows_without_a_key_its_logit_as_lse(judged: Any) -> None:
    judged(mask="~full | (causal & ~prefix(9))", scores=(Sink(),))


@pytest.mark.parametrize("scale", [-0.3, 0.0, 2.5])
def test_a_scale_of_any_sign_is_right(judged: Any, scale: float) -> None:
    judged(mask="causal", scale=scale)


@pytest.mark.parametrize(
    "distribution", ["negative_lse", "rising", "huge_negative", "huge_unseen", "one_hot"]
)
def test_inputs_that_expose_the_online_softmax_are_right(judged: Any, distribution: str) -> None:
    judged(mask="causal", distribution=distribution, q_len=70, k_len=70)
