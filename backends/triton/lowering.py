"""What does a kernel need to know of a mask? Lists of blocks to visit, and code and a table for the partial ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.problem import BlockLists, BlockMap, Extent, Mask

from .predicate import Predicate, compile_predicate
from .walking import WalkArguments


@dataclass(frozen=True, eq=False)
class Walk:
    """The blocks that each program visits, on the device: rows run over batch, head, then block.

    `*_lists` is False where every row's list is one run of neighbours, so that the kernel counts instead of reading
    and its loads can be issued ahead. `order` holds the blocks of each (batch, head), the most work first. `*_rows`
    are the rows from one batch row, or one head, to the next: 0 where the mask does not vary.
    """

    order: Tensor
    partial_offsets: Tensor
    partial_indices: Tensor
    full_offsets: Tensor
    full_indices: Tensor
    partial_lists: bool
    full_lists: bool
    batch_rows: int
    head_rows: int
    tiles: int  # visited over the whole problem

    @property
    def arguments(self) -> WalkArguments:
        """As the kernels take them."""
        lists = (self.partial_offsets, self.partial_indices, self.full_offsets, self.full_indices)
        return WalkArguments(self.order, *lists, self.batch_rows, self.head_rows)


@dataclass(frozen=True, eq=False)
class LoweredMask:
    """A mask made ready for kernels on one device: the predicate (None: every pair is allowed) and its table."""

    mask: Mask
    extent: Extent
    predicate: Predicate | None
    table: Tensor

    @property
    def function(self) -> Any:
        return None if self.predicate is None else self.predicate.function


def lower(mask: Mask, extent: Extent, device: torch.device) -> LoweredMask:
    """Compile the predicate and move its table. NotImplementedError where it uses an operation we cannot translate."""
    predicate = compile_predicate(mask, extent)
    table = np.zeros(1, dtype=np.int32) if predicate is None else predicate.table
    return LoweredMask(mask.simplified(), extent, predicate, _moved(table, device))


def walk_over_keys(blocks: BlockMap, extent: Extent, device: torch.device) -> Walk:
    """For the forward and dQ: the key blocks of each query block. A ragged last key block is looked at."""
    ragged = blocks.key_blocks - 1 if extent.k_len % blocks.block_k else None
    return _walk(
        blocks.partial_by_query, blocks.full_by_query, ragged, blocks.query_blocks, blocks, extent, device
    )


def walk_over_all(blocks: BlockMap, extent: Extent, device: torch.device) -> Walk:
    """For split-KV: the key blocks of each query block in one list, all of them looked at."""
    rows = blocks.batch * blocks.heads * blocks.query_blocks
    parts = (blocks.partial_by_query, blocks.full_by_query)
    row = np.concatenate([np.repeat(np.arange(rows), np.diff(part.offsets)) for part in parts])
    index = np.concatenate([part.indices for part in parts])
    order = np.lexsort((index, row))
    offsets = parts[0].offsets + parts[1].offsets
    none = BlockLists(np.zeros(rows + 1, dtype=np.int32), np.zeros(0, dtype=np.int32))
    every = BlockLists(offsets, index[order])
    return _walk(every, none, None, blocks.query_blocks, blocks, extent, device)


def walk_over_queries(blocks: BlockMap, extent: Extent, device: torch.device) -> Walk:
    """For dK and dV: the query blocks of each key block. A ragged last query block is looked at."""
    ragged = blocks.query_blocks - 1 if extent.q_len % blocks.block_q else None
    return _walk(blocks.partial_by_key, blocks.full_by_key, ragged, blocks.key_blocks, blocks, extent, device)


def _walk(
    partial: BlockLists,
    full: BlockLists,
    ragged: int | None,
    rows: int,
    blocks: BlockMap,
    extent: Extent,
    device: torch.device,
) -> Walk:
    if ragged is not None:
        partial, full = _with_moved(partial, full, ragged)
    work = np.diff(partial.offsets) + np.diff(full.offsets)
    # Equal work keeps the later block first: for causal masks that is the order of falling work as well.
    order = rows - 1 - np.argsort(-work.reshape(-1, rows)[:, ::-1], axis=1, kind="stable")
    planes = (extent.batch // blocks.batch) * (extent.heads // blocks.heads)
    return Walk(
        order=_moved(order, device),
        partial_offsets=_moved(partial.offsets, device),
        partial_indices=_moved(partial.indices, device),
        full_offsets=_moved(full.offsets, device),
        full_indices=_moved(full.indices, device),
        partial_lists=not _is_runs(partial),
        full_lists=not _is_runs(full),
        batch_rows=blocks.heads * rows if blocks.batch > 1 else 0,
        head_rows=rows if blocks.heads > 1 else 0,
        tiles=int(work.sum()) * planes,
    )


def _with_moved(partial: BlockLists, full: BlockLists, column: int) -> tuple[BlockLists, BlockLists]:
    """Full blocks of this column become partial: they have pairs past the end, which must be masked."""
    at = np.flatnonzero(full.indices == column)
    rows = np.searchsorted(full.offsets, at, side="right") - 1
    kept = BlockLists(_shifted(full.offsets, rows, -1), np.delete(full.indices, at))
    # The column is the last one, so each moved block goes to the end of its row's list.
    grown = np.insert(partial.indices, partial.offsets[rows + 1], column).astype(np.int32)
    return BlockLists(_shifted(partial.offsets, rows, 1), grown), kept


def _shifted(offsets: np.ndarray, rows: np.ndarray, step: int) -> np.ndarray:
    change = np.zeros(offsets.size, dtype=np.int64)
    change[rows + 1] = step
    return (offsets + np.cumsum(change)).astype(np.int32)


def _is_runs(lists: BlockLists) -> bool:
    if lists.indices.size < 2:
        return True
    jumps = np.diff(lists.indices) != 1
    starts = lists.offsets[1:-1]
    jumps[starts[(starts > 0) & (starts < lists.indices.size)] - 1] = False
    return not bool(jumps.any())


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    filled = array if array.size else np.zeros(1, dtype=np.int32)  # an empty tensor has no address
    return torch.from_numpy(np.ascontiguousarray(filled.ravel(), dtype=np.int32)).to(device)
