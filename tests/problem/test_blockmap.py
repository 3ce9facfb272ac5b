"""The block map agrees with the dense mask on every tile."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import MaskError
from attnbench.problem import blockmap
from attnbench.problem.blockmap import EMPTY, FULL, PARTIAL, BlockLists, BlockMap
from attnbench.problem.grammar import parse_mask
from attnbench.problem.masks import Extent
from tests.problem.mask_strategies import LONGEST, MaskProblem, dense_from_predicate, mask_problems

blocks = st.integers(1, LONGEST + 3)


def brute_force(case: MaskProblem, block_q: int, block_k: int) -> np.ndarray:
    table = dense_from_predicate(case.mask, case.extent)
    rows, columns = -(-case.extent.q_len // block_q), -(-case.extent.k_len // block_k)
    kinds = np.zeros((case.extent.batch, case.extent.heads, rows, columns), dtype=np.int8)
    for b, h, i, j in np.ndindex(kinds.shape):
        tile = table[b, h, i * block_q : (i + 1) * block_q, j * block_k : (j + 1) * block_k]
        kinds[b, h, i, j] = FULL if tile.all() else PARTIAL if tile.any() else EMPTY
    return kinds


def listed(lists: BlockLists, row: int) -> list[int]:
    return lists.indices[lists.offsets[row] : lists.offsets[row + 1]].tolist()


@given(mask_problems(), blocks, blocks)
@settings(max_examples=200, deadline=None)
def test_tiles_are_those_of_the_dense_mask(case: MaskProblem, block_q: int, block_k: int) -> None:
    made = case.mask.block_map(case.extent, block_q, block_k)
    expected = brute_force(case, block_q, block_k)
    assert made.kinds.dtype == np.int8
    np.testing.assert_array_equal(np.broadcast_to(made.kinds, expected.shape), expected)
    assert made.batch == 1 or case.mask.varies_over_batch
    assert made.heads == 1 or case.mask.varies_over_heads


@given(mask_problems(), blocks, blocks)
@settings(max_examples=100, deadline=None)
def test_lists_hold_the_same_tiles_both_ways(case: MaskProblem, block_q: int, block_k: int) -> None:
    made = case.mask.block_map(case.extent, block_q, block_k)
    lists = {
        PARTIAL: (made.partial_by_query, made.partial_by_key),
        FULL: (made.full_by_query, made.full_by_key),
    }
    planes = made.kinds.reshape(-1, made.query_blocks, made.key_blocks)
    for kind, (by_query, by_key) in lists.items():
        assert by_query.offsets.dtype == by_query.indices.dtype == np.int32
        assert by_key.offsets.dtype == by_key.indices.dtype == np.int32
        assert by_query.offsets.size == len(planes) * made.query_blocks + 1
        assert by_key.offsets.size == len(planes) * made.key_blocks + 1
        for z, plane in enumerate(planes):
            for i, row in enumerate(plane):
                assert listed(by_query, z * made.query_blocks + i) == np.flatnonzero(row == kind).tolist()
            for j, column in enumerate(plane.T):
                assert listed(by_key, z * made.key_blocks + j) == np.flatnonzero(column == kind).tolist()


@given(mask_problems(), blocks, blocks)
@settings(max_examples=50, deadline=None)
def test_the_map_does_not_depend_on_the_chunks_or_the_sums(
    case: MaskProblem, block_q: int, block_k: int
) -> None:
    whole = case.mask.block_map(case.extent, block_q, block_k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockmap, "row_chunks", one_block_at_a_time)
        patch.setattr(blockmap, "DENSE_CELLS_PER_EVENT", 0)
        np.testing.assert_array_equal(case.mask.block_map(case.extent, block_q, block_k).kinds, whole.kinds)


def one_block_at_a_time(extent: Extent, most_spans: int, multiple_of: int):
    for start in range(0, extent.q_len, multiple_of):
        yield np.arange(start, min(start + multiple_of, extent.q_len), dtype=np.int64)


def steps_of(text: str, length: int) -> tuple[int, int]:
    """(numbers handled to make a map, tiles that it stands for), in both directions."""
    steps = 0
    whole = blockmap._stretches

    def counted(
        keys: np.ndarray, changes: np.ndarray, cells: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        nonlocal steps
        made = whole(keys, changes, cells)
        # Besides the events: the cells counted one by one, and the tiles at which columns begin and end.
        dense = cells if cells <= blockmap.DENSE_CELLS_PER_EVENT * keys.size else 0
        steps += keys.size + dense + made[0].size + int(made[1][made[2] < 0].sum())
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blockmap, "_stretches", counted)
        made = parse_mask(text).block_map(Extent(1, 1, length, length), 64, 64)
        runs = (made.partial, made.full, made.partial_down, made.full_down)
    return steps + sum(run.starts.size for run in runs), int(sum(run.tiles.sum() for run in runs))


@pytest.mark.parametrize(
    "text",
    [
        "full",
        "causal",
        "window(300, 40)",
        "prefix(99)",
        "~window(9, 9)",
        "global(70) | window(64, 0)",
        "padding(3000)",
    ],
)
def test_making_a_map_follows_the_length_and_not_the_square(text: str) -> None:
    short, long = steps_of(text, 1 << 14), steps_of(text, 1 << 17)
    assert long[0] <= 8 * short[0] * 1.01
    if text in ("full", "causal"):
        assert long[1] > 60 * short[1]


def test_documents_take_one_run_per_row_at_any_length() -> None:
    texts = [f"causal & documents({', '.join([str(n // 16)] * 16)})" for n in (1 << 14, 1 << 17)]
    few, many = steps_of(texts[0], 1 << 14), steps_of(texts[1], 1 << 17)
    assert many[0] <= 8 * few[0] * 1.01


def test_a_touching_pair_of_ranges_fills_a_tile() -> None:
    halves = parse_mask("window(inf, 0) | ~window(inf, 0)")
    assert (halves.block_map(Extent(1, 1, 8, 8), 4, 4).kinds == FULL).all()


def test_a_long_causal_map_has_a_diagonal_of_partial_tiles() -> None:
    made: BlockMap = parse_mask("causal").block_map(Extent(2, 4, 32_768, 32_768), 128, 128)
    assert made.kinds.shape == (1, 1, 256, 256)
    np.testing.assert_array_equal(made.kinds[0, 0], np.tri(256, 256, -1) * FULL + np.eye(256) * PARTIAL)


def test_single_token_tiles_of_a_long_window_are_listed_without_a_dense_matrix() -> None:
    n, reach = 100_000, 3
    made = parse_mask(f"causal & window({reach}, 0)").block_map(Extent(1, 1, n, n), 1, 1)
    assert made.partial_by_query.indices.size == 0
    assert made.full_by_query.indices.size == n * (reach + 1) - reach * (reach + 1) // 2


def test_a_dilated_map_of_a_long_problem_counts_tiles_without_listing_keys() -> None:
    made = parse_mask("causal & dilated(200)").block_map(Extent(1, 1, 20_000, 20_000), 128, 100)
    pairs = (
        128 + 100 - 1
    )  # p - j takes so many consecutive values in a tile: one of them is a multiple of 200
    assert pairs >= 200
    touched = made.kinds[0, 0] == PARTIAL
    diagonal = np.add.outer(np.arange(157) * 128, np.zeros(200)) >= np.add.outer(
        np.zeros(157), np.arange(200) * 100
    )
    assert (touched[:-1] == (made.kinds[0, 0][:-1] != EMPTY)).all()
    assert touched[:-1][diagonal[:-1]].all()


@pytest.mark.parametrize(("block_q", "block_k"), [(0, 4), (4, -1)])
def test_a_block_has_at_least_one_token(block_q: int, block_k: int) -> None:
    with pytest.raises(MaskError, match="at least 1 token"):
        parse_mask("full").block_map(Extent(1, 1, 8, 8), block_q, block_k)
