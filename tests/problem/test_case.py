"""A case's id, JSON, work and memory floor are exact."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attnbench.errors import CaseError, MaskError, ScoreError
from attnbench.problem import (
    ALiBi,
    Bias,
    Case,
    Causal,
    Documents,
    Padding,
    RelativeBias,
    Sink,
    SlidingWindow,
    Softcap,
)

SCORES = [
    Softcap(30.0),
    ALiBi(),
    ALiBi((0.5, 0.25)),
    Bias("hqk"),
    Bias("k", 0.02),
    RelativeBias("t5(32,128,bidirectional)"),
    RelativeBias("grid(4,4)"),
    Sink(),
    Sink(100.0),
]


def test_the_id_reads_aloud() -> None:
    case = Case(
        batch=2,
        q_len=4096,
        k_len=4096,
        q_heads=32,
        kv_heads=8,
        head_dim=128,
        dtype="bf16",
        mask=Causal() & SlidingWindow(128, 0),
    )
    assert case.id == "b2-q4096-k4096-h32:8-d128-bf16-causal+window128.0-fwd"  # DESIGN.md's example


def test_every_field_that_is_not_default_is_in_the_id(a_case) -> None:
    changes: list[dict[str, Any]] = [
        {"batch": 3},
        {"q_len": 15},
        {"k_len": 17},
        {"q_heads": 4},
        {"kv_heads": 1},
        {"head_dim": 16},
        {"v_dim": 4},
        {"dtype": "bf16"},
        {"mask": Causal()},
        {"mask": Causal("top_left")},
        *({"scores": (score,)} for score in SCORES),
        {"scale": 1.0},
        {"scale": -0.125},
        {"direction": "fwd_bwd"},
        {"layout": "bshd"},
        {"layout": "qkv_packed"},
    ]
    ids = [a_case().id, *(a_case(**change).id for change in changes)]
    assert len(set(ids)) == len(ids)
    assert all(re.fullmatch(r"[A-Za-z0-9_.:+-]+", text) for text in ids)


@given(
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from([(1, 1), (4, 2), (6, 3)]),
    st.sampled_from(["fp32", "bf16", "fp16"]),
    st.sampled_from([(), (Softcap(5.0), ALiBi()), (Sink(),), (Bias("bk", 0.5),)]),
    st.sampled_from([None, 0.3, 1.0]),
)
def test_a_case_survives_json(
    q_len: int, k_len: int, heads: tuple[int, int], dtype: Any, scores: Any, scale: float | None
) -> None:
    case = Case(
        q_len=q_len,
        k_len=k_len,
        q_heads=heads[0],
        kv_heads=heads[1],
        head_dim=8,
        dtype=dtype,
        scores=scores,
        scale=scale,
        mask=Causal() | Padding((k_len,)),
    )
    again = Case.from_json(json.loads(json.dumps(case.to_json())))
    assert again == case
    assert again.id == case.id


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"q_len": 0}, "q_len is a whole number of at least 1"),
        ({"k_len": 1.5}, "k_len is a whole number"),
        ({"kv_heads": 3, "q_heads": 4}, "no multiple of kv_heads"),
        ({"dtype": "float32"}, "dtype is one of fp32, bf16, fp16"),
        ({"direction": "bwd"}, "direction is one of fwd, fwd_bwd"),
        ({"layout": "qkv_packed", "k_len": 8}, "needs q_len == k_len"),
        ({"scale": float("inf")}, "scale is a finite number"),
        ({"mask": "causal"}, "parse_mask reads a text"),
    ],
)
def test_an_invalid_case_names_the_field(a_case, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(CaseError, match=says):
        a_case(**changes)


def test_a_mask_or_score_that_does_not_fit_is_refused_when_the_case_is_made(a_case) -> None:
    with pytest.raises(MaskError):
        a_case(mask=Documents((4, 4)), k_len=12)
    with pytest.raises(ScoreError, match="2 slopes but the problem has 4"):
        a_case(scores=(ALiBi((0.5, 0.25)),), q_heads=4)
    with pytest.raises(ScoreError, match="given twice"):
        a_case(scores=(Softcap(1.0), Softcap(2.0)))


def test_scores_are_kept_in_canonical_order_whatever_order_they_come_in(a_case) -> None:
    assert a_case(scores=(Sink(), ALiBi(), Softcap(2.0))) == a_case(scores=(Softcap(2.0), Sink(), ALiBi()))


def test_an_unknown_field_of_a_stored_case_is_named() -> None:
    with pytest.raises(CaseError, match="no field 'sequence'"):
        Case.from_json({"sequence": 3})
    with pytest.raises(CaseError, match="not a whole case: it needs k_len, q_heads, head_dim, dtype"):
        Case.from_json({"q_len": 3})


def test_flops_are_of_allowed_pairs_only(a_case) -> None:
    case = a_case(batch=3, q_heads=4, mask=Causal(), head_dim=8, v_dim=16, direction="fwd_bwd")
    pairs = 3 * 4 * (16 * 17 // 2)
    assert case.pairs == pairs
    assert case.flops("fwd") == 2 * pairs * (8 + 16)
    assert case.flops("bwd") == 2 * pairs * (3 * 8 + 2 * 16)


def test_the_memory_floor_is_out_and_with_the_backward_the_gradients_and_statistics(a_case) -> None:
    # MEASURING.md: B1 H8 S1024 D64 fp32, forward O = 2 MiB; O + float32 LSE = 2.03 MiB.
    big = {"q_len": 1024, "k_len": 1024, "q_heads": 8, "head_dim": 64}
    mib = 2**20
    assert a_case(**big).least_peak_bytes == 2 * mib
    statistics = 8 * 1024 * 4
    assert a_case(**big, direction="fwd_bwd").least_peak_bytes == 4 * 2 * mib + 2 * statistics
    shared = a_case(**big, kv_heads=2, direction="fwd_bwd", dtype="bf16")
    assert shared.least_peak_bytes == (2 * mib + 2 * mib // 4) + 2 * statistics


def test_only_visible_keys_count_as_traffic(a_case) -> None:
    whole = a_case().least_traffic_bytes
    row = 2 * 8 * 4  # two heads, eight numbers of four bytes
    assert whole == 16 * row * 4
    assert a_case(mask=Padding((5,))).least_traffic_bytes == 16 * row * 2 + 5 * row * 2
    # One query at the end sees three keys.
    assert a_case(q_len=1, mask=Causal() & SlidingWindow(2, 0)).least_traffic_bytes == row * 2 + 3 * row * 2
    # Two heads of one group see different halves: the shared key head is read wholly.
    halves = a_case(mask=_halves(), kv_heads=1, k_len=16)
    assert halves.least_traffic_bytes == 16 * row * 2 + 16 * row // 2 * 2


def _halves() -> Any:
    from attnbench.problem import BlockSparse

    return BlockSparse((((1, 0), (1, 0)), ((0, 1), (0, 1))), 8)


@pytest.mark.parametrize(
    ("mask", "empty"),
    [
        (Causal(), False),
        (Padding((0,)), True),
        (Padding((1,)), False),
        (~Causal(), True),
        (Documents((3, 4)), True),
    ],
)
def test_rows_without_a_key_are_detected(a_case, mask: Any, empty: bool) -> None:
    assert a_case(mask=mask).has_empty_rows is empty
    assert bool((~mask.materialize(1, 2, 16, 16).any(-1)).any()) is empty
