"""The tiles that a block-sparse kernel computes, and those in which it applies the mask."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from attnbench.errors import MaskError
from attnbench.problem.counting import Term, multiples, row_chunks, terms
from attnbench.problem.spans import Ints

if TYPE_CHECKING:
    from attnbench.problem.masks import Extent, Mask

EMPTY, PARTIAL, FULL = 0, 1, 2
DENSE_CELLS_PER_EVENT = 4  # up to so many, events are counted per tile; beyond, they are sorted


@dataclass(frozen=True, eq=False)
class BlockLists:
    """The tiles of each row of tiles: those of row r are indices[offsets[r] : offsets[r + 1]], rising.

    offsets: int32 [rows + 1]; indices: int32 [nnz]. Rows run over batch, head, then block.
    """

    offsets: NDArray[np.int32]
    indices: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class BlockRuns:
    """The runs of neighbouring tiles in each row of tiles, rising, no two touching: as many as the mask has spans.

    Run n is the tiles from starts[n] to ends[n]; those of row r are the runs from offsets[r] to offsets[r + 1].
    """

    offsets: Ints
    starts: Ints
    ends: Ints

    @classmethod
    def of(cls, row: Ints, start: Ints, end: Ints, rows: int) -> BlockRuns:
        """Join disjoint, non-empty runs in the order of row and start."""
        apart = (np.diff(row, prepend=-1) != 0) | (start != np.concatenate([[-1], end])[:-1])
        first = np.flatnonzero(apart)
        offsets = np.concatenate([[0], np.cumsum(np.bincount(row[first], minlength=rows))])
        return cls(offsets, start[first], end[np.append(first[1:], row.size)[: first.size] - 1])

    @property
    def rows(self) -> Ints:
        """The row of each run."""
        return np.repeat(np.arange(self.offsets.size - 1), np.diff(self.offsets))

    @property
    def tiles(self) -> Ints:
        """The number of tiles in each row: [rows]."""
        before = np.concatenate([[0], np.cumsum(self.ends - self.starts)])
        return np.diff(before[self.offsets])

    @cached_property
    def listed(self) -> BlockLists:
        """The same tiles, listed one by one."""
        length = self.ends - self.starts
        indices = np.repeat(self.starts, length) + _within(length)
        offsets = np.concatenate([[0], np.cumsum(self.tiles)])
        return BlockLists(offsets.astype(np.int32), indices.astype(np.int32))

    def transposed(self, planes: int, rows: int, columns: int) -> BlockRuns:
        """The same tiles as runs down the columns; `rows` and `columns` are those of one of the planes."""
        plane, row = np.divmod(self.rows, rows)
        above = (plane * (rows + 1) + row) * (columns + 1)
        below = above + columns + 1
        # A tile begins a run of its column if the row above has none, and ends one if the row below has none.
        places = np.concatenate(
            [above + self.starts, above + self.ends, below + self.starts, below + self.ends]
        )
        steps = np.repeat([1, -1, -1, 1], self.starts.size)
        place, length, step = _stretches(places, steps, planes * (rows + 1) * (columns + 1))
        edges = []
        for sign in (1, -1):
            kept = step == sign
            cell = np.repeat(place[kept], length[kept]) + _within(length[kept])
            line, column = np.divmod(cell, columns + 1)
            plane, row = np.divmod(line, rows + 1)
            target = plane * columns + column
            order = np.lexsort((row, target))
            edges.append((target[order], row[order]))
        (target, start), (_, end) = edges
        return BlockRuns.of(target, start, end, planes * columns)


@dataclass(frozen=True, eq=False)
class BlockMap:
    """The tiles of a mask that hold allowed pairs, by query block and by key block.

    FULL: every pair of the tile within q_len x k_len is allowed; PARTIAL: some; EMPTY: none. `batch` and
    `heads` are 1 if the mask does not vary over them. By query, row (b, h, i) is (b * heads + h) * query_blocks + i and
    runs are of key blocks; by key, rows are key blocks and runs of query blocks.
    """

    batch: int
    heads: int
    query_blocks: int
    key_blocks: int
    block_q: int
    block_k: int
    partial: BlockRuns
    full: BlockRuns

    @cached_property
    def partial_down(self) -> BlockRuns:
        """The partial tiles by key."""
        return self._transposed(self.partial)

    @cached_property
    def full_down(self) -> BlockRuns:
        """The full tiles by key."""
        return self._transposed(self.full)

    @property
    def partial_by_query(self) -> BlockLists:
        return self.partial.listed

    @property
    def full_by_query(self) -> BlockLists:
        return self.full.listed

    @property
    def partial_by_key(self) -> BlockLists:
        return self.partial_down.listed

    @property
    def full_by_key(self) -> BlockLists:
        return self.full_down.listed

    @cached_property
    def kinds(self) -> NDArray[np.int8]:
        """EMPTY, PARTIAL or FULL for each tile: int8 [B|1, H|1, query blocks, key blocks]."""
        flat = np.full((self.batch * self.heads * self.query_blocks, self.key_blocks), EMPTY, dtype=np.int8)
        for runs, kind in ((self.partial, PARTIAL), (self.full, FULL)):
            flat[np.repeat(np.arange(flat.shape[0]), runs.tiles), runs.listed.indices] = kind
        return flat.reshape(self.batch, self.heads, self.query_blocks, self.key_blocks)

    def _transposed(self, runs: BlockRuns) -> BlockRuns:
        return runs.transposed(self.batch * self.heads, self.query_blocks, self.key_blocks)


def build_block_map(mask: Mask, extent: Extent, block_q: int, block_k: int) -> BlockMap:
    """Find the tiles from the mask's spans in about q_len * spans steps; tiles between a span's ends are not listed.

    Raises MaskError if the mask does not fit the extent or a block is shorter than one token.
    """
    mask.check(extent)
    if min(block_q, block_k) < 1:
        raise MaskError(f"a block is at least 1 token long, not {block_q} x {block_k}")
    batch = extent.batch if mask.varies_over_batch else 1
    heads = extent.heads if mask.varies_over_heads else 1
    query_blocks, key_blocks = -(-extent.q_len // block_q), -(-extent.k_len // block_k)
    parts = terms(mask)
    stretches: list[tuple[Ints, Ints, Ints, Ints]] = []
    for plane in range(batch * heads):
        b, h = divmod(plane, heads)
        for query, key, length, pairs in _tiles(parts, extent, b, h, block_q, block_k):
            stretches.append((plane * query_blocks + query, key, key + length, pairs))
    row, start, end, pairs = (np.concatenate(column) for column in zip(*stretches, strict=True))
    # Only the last key block may be short. A span that reaches it ends there, so it has a stretch of its own.
    tile_rows = np.minimum(block_q, extent.q_len - row % query_blocks * block_q)
    whole = pairs == tile_rows * np.minimum(block_k, extent.k_len - start * block_k)
    partial, full = (
        BlockRuns.of(row[kept], start[kept], end[kept], batch * heads * query_blocks)
        for kept in (~whole, whole)
    )
    return BlockMap(batch, heads, query_blocks, key_blocks, block_q, block_k, partial, full)


def _tiles(
    parts: list[Term], extent: Extent, b: int, h: int, block_q: int, block_k: int
) -> Iterator[tuple[Ints, Ints, Ints, Ints]]:
    """Yield stretches of equal tiles as (query block, first key block, blocks, pairs per block), in chunks of rows."""
    width = -(-extent.k_len // block_k) + 1  # one more, for the end of the last tile
    most = sum(part.mask.max_spans(extent) + (width if part.modulus > 1 else 0) for part in parts)
    for rows in row_chunks(extent, max(1, most), block_q):
        first = int(rows[0]) // block_q
        events = [_events(part, extent, b, h, rows, block_k) for part in parts]
        line = [(rows[row] // block_q - first) * width + place for row, place, _ in events]
        keys = np.concatenate([np.zeros(0, dtype=np.int64), *line])
        steps = np.concatenate([np.zeros(0, dtype=np.int64), *(step for _, _, step in events)])
        cells = (int(rows[-1]) // block_q - first + 1) * width
        cell, length, pairs = _stretches(keys, steps, cells)
        yield first + cell // width, cell % width, length, pairs


def _events(part: Term, extent: Extent, b: int, h: int, rows: Ints, block_k: int) -> tuple[Ints, Ints, Ints]:
    """(row, key block, step): the sum of a row's steps up to a block is its pairs in that tile."""
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
    # Tiles hold different numbers of a modulus's keys: cut the range at every tile's edge.
    times = tail - head + 1
    row, start, end = np.repeat(row, times), np.repeat(start, times), np.repeat(end, times)
    block = np.repeat(head, times) + _within(times)
    low, high = np.maximum(start, block * block_k), np.minimum(end, (block + 1) * block_k)
    count = part.sign * multiples(low, high, rows[row] + extent.shift, part.modulus)
    return np.tile(row, 2), np.concatenate([block, block + 1]), np.concatenate([count, -count])


def _stretches(keys: Ints, steps: Ints, cells: int) -> tuple[Ints, Ints, Ints]:
    """(first cell, cells, sum) of each stretch between events whose sum of steps so far is not 0."""
    if cells <= DENSE_CELLS_PER_EVENT * keys.size:
        place = np.flatnonzero(np.bincount(keys, minlength=cells))
        # Whole numbers below 2^53 are exact in the float64 of bincount.
        step = np.bincount(keys, weights=steps, minlength=cells)[place]
    else:
        place, inverse = np.unique(keys, return_inverse=True)
        step = np.bincount(inverse, weights=steps, minlength=place.size)
    sums = np.cumsum(step).astype(np.int64)
    kept = sums != 0
    return place[kept], np.diff(place, append=cells)[kept], sums[kept]


def _within(lengths: Ints) -> Ints:
    """0, 1, ..., length - 1 of each length, one after another."""
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
