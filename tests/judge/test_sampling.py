"""Long cases are judged at a sample that holds every boundary."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attnbench.judge import judge, make_reference, sampling
from attnbench.judge.oracle import exact_attention
from attnbench.judge.sampling import chosen_columns, chosen_rows, chosen_tokens
from attnbench.problem import Case
from tests.judge.right_answer import flash, inputs_of


def test_the_same_seed_gives_the_same_reference(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case, q_len=500, k_len=3000, q_heads=8, kv_heads=8)
    first, second, other = (make_reference(inputs, seed=seed).expected["out"] for seed in (3, 3, 4))
    assert np.array_equal(first.sigma, second.sigma)
    assert not np.array_equal(first.at[2], other.at[2])


@pytest.mark.parametrize("length", [2048, 4097, 32768])
def test_a_sample_of_tokens_always_holds_the_ends_and_the_boundaries_of_tiles(length: int) -> None:
    last_tile = (length - 1) // 128 * 128
    for seed in range(20):
        tokens = chosen_tokens(length, 32, random.Random(seed))
        assert {0, 1, 63, 64, 65, 127, 128, 129, last_tile - 1, last_tile, length - 1} <= set(tokens)
        assert len(tokens) == 32
        assert tokens == sorted(set(tokens))


def test_long_cases_are_sampled_and_short_ones_are_not(a_case: Callable[..., Case]) -> None:
    long = a_case(q_len=32768, k_len=32768, q_heads=1, head_dim=64, direction="fwd_bwd")
    for sample in (chosen_rows(long, "cpu", random.Random(0)), chosen_columns(long, "cpu", random.Random(0))):
        assert len(sample.tokens) == 32
    short = a_case(q_len=128, k_len=128, q_heads=4, head_dim=64, direction="fwd_bwd")
    for sample in (
        chosen_rows(short, "cpu", random.Random(0)),
        chosen_columns(short, "cpu", random.Random(0)),
    ):
        assert sample.tokens == list(range(128))
        assert sample.kv_heads == [0, 1, 2, 3]


def test_a_sampled_reference_agrees_with_the_whole_answer(
    a_case: Callable[..., Case], monkeypatch: Any
) -> None:
    inputs = inputs_of(a_case, batch=3, q_len=200, k_len=150)
    exact = exact_attention(inputs)
    monkeypatch.setitem(sampling.PAIR_RUNS, "cpu", 1 << 15)
    monkeypatch.setitem(sampling.FULL_PASS_PAIRS, "cpu", 1 << 15)
    reference = make_reference(inputs)
    for name in ("out", "dq", "dk", "dv"):
        expected, whole = reference.expected[name], getattr(exact, name).numpy()
        assert expected.value.size < whole.size
        assert np.allclose(expected.value, whole[np.ix_(*expected.at)], rtol=1e-10, atol=1e-12)


def test_a_nan_in_a_row_that_is_not_sampled_is_still_seen(
    a_case: Callable[..., Case], monkeypatch: Any
) -> None:
    inputs = inputs_of(a_case, q_len=200, direction="fwd")
    monkeypatch.setitem(sampling.PAIR_RUNS, "cpu", 1 << 15)
    reference, (output, _) = make_reference(inputs), flash(inputs)
    left_out = next(i for i in range(200) if i not in reference.expected["out"].at[2])
    assert judge(reference, output, None, inputs).ok
    output.out[0, 0, left_out, 0] = math.nan
    assert judge(reference, output, None, inputs).errors["out"].worst == (0, 0, left_out, 0)
