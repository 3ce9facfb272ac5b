"""A program visits each tile that has a pair exactly once, and no other."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from attnbench.backend import Backend
from attnbench.problem import Extent, parse_mask

MASKS = [
    "full",
    "causal",
    "causal & window(20, 0)",
    "documents(30, 0, 5, 50)",
    "global(9) | window(3, 3)",
    "dilated(40)",
    "~full",
]
TILES = [(16, 16), (32, 16), (16, 64)]


def _walks(text: str, extent: Extent, block_q: int, block_k: int) -> Any:
    from attnbench_backends.triton.lowering import walk_over_keys, walk_over_queries

    blocks = parse_mask(text).block_map(extent, block_q, block_k)
    cpu = torch.device("cpu")
    return walk_over_keys(blocks, extent, cpu), walk_over_queries(blocks, extent, cpu)


def _visited(walk: Any, which: str, row: int) -> list[int]:
    """The blocks of a row, read as the kernel reads them."""
    blocks = getattr(walk, which)
    begin, end = int(blocks.offsets[row]), int(blocks.offsets[row + 1])
    if blocks.indices is not None:
        return blocks.indices[begin:end].tolist()
    return [int(blocks.first[row]) + t for t in range(end - begin)]


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("text", MASKS)
def test_every_tile_with_a_pair_is_visited_once(
    triton_backend: Backend, text: str, tile: tuple[int, int]
) -> None:
    extent = Extent(1, 1, 85, 85)
    allowed = parse_mask(text).materialize(1, 1, 85, 85)[0, 0]
    over_keys, over_queries = _walks(text, extent, *tile)
    for walk, pairs, (own, other) in (
        (over_keys, allowed, tile),
        (over_queries, allowed.T, (tile[1], tile[0])),
    ):
        # Rows past the end are the program's own and never stored; blocks that reach past it must be looked at.
        some = _tiles(pairs, own, other, past_the_end=False).any(dim=3).any(dim=1)
        every = _tiles(pairs, own, other, past_the_end=True).all(dim=3).all(dim=1)
        for row in range(some.shape[0]):
            partial, full = _visited(walk, "partial", row), _visited(walk, "full", row)
            assert sorted(partial + full) == some[row].nonzero().flatten().tolist()
            assert full == every[row].nonzero().flatten().tolist()


def _tiles(pairs: torch.Tensor, own: int, other: int, past_the_end: bool) -> torch.Tensor:
    """[rows of tiles, own, tiles of a row, other]; no pair is allowed with what the other side lacks."""
    length = pairs.shape[0]
    padded = torch.zeros(-(-length // own) * own, -(-length // other) * other, dtype=torch.bool)
    padded[:length, :length] = pairs
    padded[length:, :length] = past_the_end
    return padded.view(padded.shape[0] // own, own, -1, other)


@pytest.mark.parametrize("text", MASKS)
def test_the_work_of_a_row_is_the_blocks_that_it_visits(triton_backend: Backend, text: str) -> None:
    for walk in _walks(text, Extent(1, 1, 85, 85), 16, 16):
        visited = [len(_visited(walk, "partial", row)) + len(_visited(walk, "full", row)) for row in range(6)]
        assert walk.work.tolist() == [[visited]]


def test_full_blocks_of_a_causal_mask_are_counted_and_not_listed(triton_backend: Backend) -> None:
    over_keys, over_queries = _walks("causal", Extent(1, 1, 128, 128), 16, 16)
    assert over_keys.full.indices is None
    assert over_queries.full.indices is None
    sparse, _ = _walks("block_sparse([[1, 0, 1], [1, 1, 0], [1, 0, 1]], 32)", Extent(1, 1, 96, 96), 16, 16)
    assert sparse.full.indices is not None


def test_work_follows_the_mask_and_not_the_square(triton_backend: Backend) -> None:
    extent = Extent(1, 1, 1 << 14, 1 << 14)
    window, _ = _walks("causal & window(255, 0)", extent, 128, 128)
    full, _ = _walks("full", extent, 128, 128)
    assert window.work.sum() < full.work.sum() / 32


def test_rows_of_the_map_are_shared_by_what_does_not_vary(triton_backend: Backend) -> None:
    over_keys, _ = _walks("padding(20, 64) & causal", Extent(2, 3, 64, 64), 16, 16)
    assert (over_keys.batch_rows, over_keys.head_rows) == (4, 0)
