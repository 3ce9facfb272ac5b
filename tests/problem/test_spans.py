"""The arithmetic of ranges is set arithmetic, and pairs are counted exactly at any length."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from attnbench.problem import counting
from attnbench.problem.grammar import parse_mask
from attnbench.problem.masks import Extent
from attnbench.problem.spans import Spans, complement, dense, intersection, runs, union
from tests.problem.mask_strategies import MaskProblem, dense_from_predicate, mask_problems

MILLION = 1_000_000

tables = hnp.arrays(np.bool_, st.tuples(st.just(5), st.just(14)))


def ragged(table: np.ndarray) -> Spans:
    """The runs of a table, with an empty range between every two and each longer one cut in half."""
    starts, ends = runs(table)
    middle = (starts + ends) // 2
    pieces = np.stack([starts, middle, middle], axis=2), np.stack([middle, middle, ends], axis=2)
    return pieces[0].reshape(len(table), -1), pieces[1].reshape(len(table), -1)


@given(tables, tables, st.sampled_from([runs, ragged]))
@settings(max_examples=150, deadline=None)
def test_ranges_join_as_sets_do(left: np.ndarray, right: np.ndarray, form) -> None:
    a, b = form(left), form(right)
    k_len = left.shape[1]
    results = {
        "|": (union(a, b), left | right),
        "&": (intersection(a, b, k_len), left & right),
        "~": (complement(a, k_len), ~left),
    }
    for sign, ((starts, ends), expected) in results.items():
        np.testing.assert_array_equal(dense((starts, ends), k_len), expected, err_msg=sign)
        np.testing.assert_array_equal((ends - starts).sum(axis=1), expected.sum(axis=1), err_msg=sign)
        assert (starts <= ends).all()
        assert (starts[:, 1:] >= ends[:, :-1]).all()


@given(mask_problems())
@settings(max_examples=200, deadline=None)
def test_the_count_is_the_sum_of_the_dense_mask(case: MaskProblem) -> None:
    assert case.mask.pairs(case.extent) == int(dense_from_predicate(case.mask, case.extent).sum())


@given(mask_problems())
@settings(max_examples=40, deadline=None)
def test_the_count_does_not_depend_on_the_chunks(case: MaskProblem) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = case.mask.pairs(case.extent)
        patch.setattr(counting, "ROWS_AT_ONCE", 3)
        patch.setattr(counting, "SPANS_AT_ONCE", 8)
        assert case.mask.pairs(case.extent) == whole


def triangle(n: int) -> int:
    return n * (n + 1) // 2


def of_residues(n: int, step: int) -> int:
    """Ordered pairs of [0, n) whose places agree modulo the step."""
    longer = n % step
    return longer * (n // step + 1) ** 2 + (step - longer) * (n // step) ** 2


def causal_of_residues(n: int, step: int) -> int:
    return (of_residues(n, step) - n) // 2 + n


N, W = MILLION, 1024
IN_WINDOW = N * W - triangle(W - 1)
CLOSED_FORMS = {
    "full": N * N,
    "~full": 0,
    "causal": triangle(N),
    "causal(top_left)": triangle(N),
    f"causal & window({W - 1}, 0)": IN_WINDOW,
    f"~(causal & window({W - 1}, 0))": N * N - IN_WINDOW,
    f"window({W - 1}, {W - 1})": 2 * IN_WINDOW - N,
    "padding(800000)": 800_000 * N,
    "padding(800000, left) & causal": triangle(N) - triangle(200_000) - 800_000 * 200_000,
    "documents(300000, 0, 200000, 400000)": 300_000**2 + 200_000**2 + 400_000**2,
    "documents(300000, 700000) & causal": triangle(300_000) + triangle(700_000),
    "prefix(1000)": triangle(N) + triangle(999),
    "global(16)": 2 * 16 * N - 16**2,
    f"global(16) | causal & window({W - 1}, 0)": 2 * 16 * N - 16**2 + IN_WINDOW - 16 * W,
    "dilated(7)": of_residues(N, 7),
    "~dilated(7)": N * N - of_residues(N, 7),
    "causal & dilated(64)": causal_of_residues(N, 64),
    "causal & ~dilated(64)": triangle(N) - causal_of_residues(N, 64),
    "dilated(999) & dilated(1000)": of_residues(N, 999_000),
    "dilated(999) | dilated(1000)": of_residues(N, 999) + of_residues(N, 1000) - of_residues(N, 999_000),
    "dilated(4) & ~dilated(2)": 0,
    "dilated(4) | dilated(6) | dilated(9)": sum(
        sign * of_residues(N, math.lcm(*steps))
        for sign, steps in [
            (1, [4]),
            (1, [6]),
            (1, [9]),
            (-1, [4, 6]),
            (-1, [4, 9]),
            (-1, [6, 9]),
            (1, [4, 6, 9]),
        ]
    ),
    "block_sparse([[1, 0], [1, 1]], 500000)": 3 * 500_000**2,
    "block_sparse([[1, 0], [1, 1]], 500000) & causal": triangle(N),
}


@pytest.mark.parametrize("text", CLOSED_FORMS)
def test_a_million_by_a_million_is_counted_exactly(text: str) -> None:
    assert parse_mask(text).pairs(Extent(1, 1, N, N)) == CLOSED_FORMS[text]


def test_the_count_runs_over_batch_and_heads_without_overflow() -> None:
    assert parse_mask("causal").pairs(Extent(4096, 128, N, N)) == 4096 * 128 * triangle(N)
    lengths = "padding(300000, 300000, 500000)"
    assert parse_mask(f"{lengths} & ~full | {lengths}").pairs(Extent(3, 7, N, N)) == 1_100_000 * 7 * N


def test_unequal_lengths_are_counted_from_the_last_key() -> None:
    decoding = Extent(1, 1, 10, N)
    assert parse_mask("causal").pairs(decoding) == 10 * N - triangle(9)
    assert parse_mask("causal(top_left)").pairs(decoding) == triangle(10)
    longer_queries = Extent(1, 1, N, 10)
    assert parse_mask("causal").pairs(longer_queries) == triangle(10)
    assert parse_mask("causal(top_left)").pairs(longer_queries) == 10 * N - triangle(9)


def test_many_batch_rows_of_equal_lengths_are_counted_once_each() -> None:
    lengths = [3, 5] * 20_000
    assert parse_mask(f"padding({lengths})").pairs(Extent(40_000, 2, 8, 8)) == sum(lengths) * 2 * 8
