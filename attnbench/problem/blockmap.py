"""Which tiles must a block-sparse kernel compute, and in which of them must it look at the mask?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnbench.errors import MaskError
from attnbench.problem.counting import Term, multiples, row_chunks, terms
from attnbench.problem.spans import Ints

if TYPE_CHECKING:
    from attnbench.problem.masks import Extent, Mask

EMPTY, PARTIAL, FULL = 0, 1, 2
DENSE_CELLS_PER_EVENT = 4  # up to here sums run over every tile, beyond it over sorted events


@dataclass(frozen=True, eq=False)
class BlockLists:
    """For each row of tiles, which tiles: those of row r are indices[offsets[r] : offsets[r + 1]], rising.

    offsets: int32 [rows + 1]; indices: int32 [nnz]. Rows run over batch, head, then block.
    """

    offsets: NDArray[np.int32]
    indices: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class BlockMap:
    """The tiles of a mask that hold allowed pairs, by query block and by key block.

    FULL: every pair of the tile within q_len x k_len is allowed; PARTIAL: some; EMPTY: none. `batch` and
    `heads` are 1 where the mask does not vary. In the lists by query, row (b, h, i) is (b * heads + h) *
    query_blocks + i and indices are key blocks; by key, rows are key blocks and indices query blocks.
    """

    batch: int
    heads: int
    query_blocks: int
    key_blocks: int
    block_q: int
    block_k: int
    partial_by_query: BlockLists
    full_by_query: BlockLists

    @cached_property
    def partial_by_key(self) -> BlockLists:
        return self._transposed(self.partial_by_query)

    @cached_property
    def full_by_key(self) -> BlockLists:
        return self._transposed(self.full_by_query)

    @cached_property
    def kinds(self) -> NDArray[np.int8]:
        """EMPTY, PARTIAL or FULL for each tile: int8 [B|1, H|1, query blocks, key blocks]."""
        flat = np.full((self.batch * self.heads * self.query_blocks, self.key_blocks), EMPTY, dtype=np.int8)
        for lists, kind in ((self.partial_by_query, PARTIAL), (self.full_by_query, FULL)):
            flat[np.repeat(np.arange(flat.shape[0]), np.diff(lists.offsets)), lists.indices] = kind
        return flat.reshape(self.batch, self.heads, self.query_blocks, self.key_blocks)

    def _transposed(self, lists: BlockLists) -> BlockLists:
        rows = self.batch * self.heads * self.query_blocks
        plane, query_block = np.divmod(np.repeat(np.arange(rows), np.diff(lists.offsets)), self.query_blocks)
        row = plane * self.key_blocks + lists.indices
        order = np.argsort(row, kind="stable")
        return _lists(row[order], query_block[order], self.batch * self.heads * self.key_blocks)


def build_block_map(mask: Mask, extent: Extent, block_q: int, block_k: int) -> BlockMap:
    """Find the tiles from the mask's spans, in about q_len * spans + non-empty tiles steps.

    Raises MaskError where the mask does not fit the extent or a block is shorter than one token.
    """
    mask.check(extent)
    if min(block_q, block_k) < 1:
        raise MaskError(f"a block is at least 1 token long, not {block_q} x {block_k}")
    batch = extent.batch if mask.varies_over_batch else 1
    heads = extent.heads if mask.varies_over_heads else 1
    query_blocks, key_blocks = -(-extent.q_len // block_q), -(-extent.k_len // block_k)
    parts = terms(mask)
    # Rows and blocks in 32 bits: a long causal mask has tens of millions of tiles.
    found: list[tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]] = []
    for b in range(batch):
        for h in range(heads):
            for query, key, pairs in _tiles(parts, extent, b, h, block_q, block_k):
                tile_rows = np.minimum(block_q, extent.q_len - query * block_q)
                tile_keys = np.minimum(block_k, extent.k_len - key * block_k)
                line = ((b * heads + h) * query_blocks + query).astype(np.int32)
                found.append((line, key.astype(np.int32), pairs == tile_rows * tile_keys))
    row, key, whole = (np.concatenate(column) for column in zip(*found, strict=True))
    rows = batch * heads * query_blocks
    partial, full = _lists(row[~whole], key[~whole], rows), _lists(row[whole], key[whole], rows)
    return BlockMap(batch, heads, query_blocks, key_blocks, block_q, block_k, partial, full)


def _lists(row: NDArray[Any], index: NDArray[Any], rows: int) -> BlockLists:
    offsets = np.zeros(rows + 1, dtype=np.int32)
    offsets[1:] = np.cumsum(np.bincount(row, minlength=rows))
    return BlockLists(offsets, index.astype(np.int32, copy=False))


def _tiles(
    parts: list[Term], extent: Extent, b: int, h: int, block_q: int, block_k: int
) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Yield (query block, key block, allowed pairs) of the non-empty tiles, in order, by chunks of rows."""
    width = -(-extent.k_len // block_k) + 1  # one more, where the last tile's events end
    most = sum(part.mask.max_spans(extent) + (width if part.modulus > 1 else 0) for part in parts)
    for rows in row_chunks(extent, max(1, most), block_q):
        first = int(rows[0]) // block_q
        events = [_events(part, extent, b, h, rows, block_k) for part in parts]
        line = [(rows[row] // block_q - first) * width + place for row, place, _ in events]
        keys = np.concatenate([np.zeros(0, dtype=np.int64), *line])
        steps = np.concatenate([np.zeros(0, dtype=np.int64), *(step for _, _, step in events)])
        cells = (int(rows[-1]) // block_q - first + 1) * width
        cell, pairs = _running_sums(keys, steps, cells)
        yield first + cell // width, cell % width, pairs


def _events(part: Term, extent: Extent, b: int, h: int, rows: Ints, block_k: int) -> tuple[Ints, Ints, Ints]:
    """(row, key block, step): the pairs of a row in a tile are the sum of the steps up to its block."""
    starts, ends = part.mask.spans(extent, b, h, rows)
    row, column = np.nonzero(ends > starts)
    start, end = starts[row, column], ends[row, column]
    head, tail = start // block_k, (end - 1) // block_k
    if part.modulus == 1:
        in_tail = np.where(head == tail, 0, end - tail * block_k)
        in_head = np.minimum(end, (head + 1) * block_k) - start
        between = np.where(head == tail, 0, block_k)
        places = [head, head + 1, tail, tail + 1]
        steps = [in_head, between - in_head, in_tail - between, -in_tail]
        return np.tile(row, 4), np.concatenate(places), part.sign * np.concatenate(steps)
    # Keys of a modulus are not spread evenly over tiles: cut the range at every tile's edge.
    times = tail - head + 1
    row, start, end = np.repeat(row, times), np.repeat(start, times), np.repeat(end, times)
    block = np.repeat(head, times) + np.arange(row.size) - np.repeat(np.cumsum(times) - times, times)
    low, high = np.maximum(start, block * block_k), np.minimum(end, (block + 1) * block_k)
    count = part.sign * multiples(low, high, rows[row] + extent.shift, part.modulus)
    return np.tile(row, 2), np.concatenate([block, block + 1]), np.concatenate([count, -count])


def _running_sums(keys: Ints, steps: Ints, cells: int) -> tuple[Ints, Ints]:
    """The cells at which the sum of all steps up to them is positive, and that sum."""
    if cells <= DENSE_CELLS_PER_EVENT * keys.size:
        # Whole numbers below 2^53 are exact in the float64 of bincount.
        sums = np.cumsum(np.bincount(keys, weights=steps, minlength=cells)).astype(np.int64)
        cell = np.flatnonzero(sums)
        return cell, sums[cell]
    place, inverse = np.unique(keys, return_inverse=True)
    sums = np.cumsum(np.bincount(inverse, weights=steps, minlength=place.size)).astype(np.int64)
    length = np.where(sums > 0, np.diff(place, append=cells), 0)
    cell = np.repeat(place, length) + np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    return cell, np.repeat(sums, length)
