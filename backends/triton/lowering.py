"""A mask as a kernel needs it: lists of blocks to visit, and code and a table for the partial ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.problem import BlockMap, BlockRuns, Extent, Mask

from .predicate import Predicate, compile_predicate
from .walking import BlocksArguments, WalkArguments


@dataclass(frozen=True, eq=False)
class Walk:
    """The blocks that each tile visits, on the device: rows run over batch, head, then block.

    Row r visits offsets[r + 1] - offsets[r] blocks of each kind: the indices from offsets[r] on; or, if those of every
    row are one run of neighbours, first[r] and the next, so that the kernel counts instead of reading and its loads
    can be issued ahead. `*_rows` are the rows from one batch row, or one head, to the next: 0 if the mask does not
    vary. `work` counts the blocks of each row, on the host.
    """

    full: BlocksArguments
    partial: BlocksArguments
    batch_rows: int
    head_rows: int
    work: np.ndarray  # [B|1, H|1, rows of a head]

    @property
    def arguments(self) -> WalkArguments:
        """As the kernels take them."""
        return WalkArguments(self.full, self.partial, self.batch_rows, self.head_rows)


@dataclass(frozen=True, eq=False)
class LoweredMask:
    """A mask prepared for kernels on one device: the predicate (None: every pair is allowed) and its table."""

    mask: Mask
    extent: Extent
    predicate: Predicate | None
    table: Tensor

    @property
    def function(self) -> Any:
        return None if self.predicate is None else self.predicate.function


def lower(mask: Mask, extent: Extent, device: torch.device) -> LoweredMask:
    """Compile the predicate and move its table; NotImplementedError if an operation of it has no translation."""
    predicate = compile_predicate(mask, extent)
    table = np.zeros(1, dtype=np.int32) if predicate is None else predicate.table
    return LoweredMask(mask.simplified(), extent, predicate, _moved(table, device))


def walk_over_keys(blocks: BlockMap, extent: Extent, device: torch.device) -> Walk:
    """For the forward and dQ: the key blocks of each query block. A ragged last key block counts as partial."""
    ragged = blocks.key_blocks - 1 if extent.k_len % blocks.block_k else None
    return _walk(blocks, blocks.partial, blocks.full, ragged, device)


def walk_over_all(blocks: BlockMap, extent: Extent, device: torch.device) -> Walk:
    """For split-KV: the key blocks of each query block in one list, all as partial."""
    rows = blocks.partial.offsets.size - 1
    none = np.zeros(0, dtype=np.int64)
    return _walk(
        blocks, _together(blocks.partial, blocks.full), BlockRuns.of(none, none, none, rows), None, device
    )


def walk_over_queries(blocks: BlockMap, extent: Extent, device: torch.device) -> Walk:
    """For dK and dV: the query blocks of each key block. A ragged last query block counts as partial."""
    ragged = blocks.query_blocks - 1 if extent.q_len % blocks.block_q else None
    return _walk(blocks, blocks.partial_down, blocks.full_down, ragged, device)


def _walk(
    blocks: BlockMap, partial: BlockRuns, full: BlockRuns, ragged: int | None, device: torch.device
) -> Walk:
    if ragged is not None:
        partial, full = _with_moved(partial, full, ragged)
    work = (partial.tiles + full.tiles).reshape(blocks.batch, blocks.heads, -1)  # [B|1, H|1, rows]
    rows = work.shape[2]
    return Walk(
        _arguments(full, device),
        _arguments(partial, device),
        batch_rows=blocks.heads * rows if blocks.batch > 1 else 0,
        head_rows=rows if blocks.heads > 1 else 0,
        work=work,
    )


def _together(one: BlockRuns, other: BlockRuns) -> BlockRuns:
    """The tiles of both; they have none in common."""
    row, start, end = (
        np.concatenate(pair)
        for pair in zip((one.rows, one.starts, one.ends), (other.rows, other.starts, other.ends), strict=True)
    )
    order = np.lexsort((start, row))
    return BlockRuns.of(row[order], start[order], end[order], one.offsets.size - 1)


def _with_moved(partial: BlockRuns, full: BlockRuns, last: int) -> tuple[BlockRuns, BlockRuns]:
    """Full blocks of the last column become partial: their pairs past the end must be masked."""
    rows = full.offsets.size - 1
    reach = full.ends > last
    kept = full.starts < np.where(reach, last, full.ends)
    moved = BlockRuns.of(full.rows[reach], np.full(reach.sum(), last), full.ends[reach], rows)
    shorter = BlockRuns.of(full.rows[kept], full.starts[kept], np.where(reach, last, full.ends)[kept], rows)
    return _together(partial, moved), shorter


def _arguments(runs: BlockRuns, device: torch.device) -> BlocksArguments:
    """Listed if a row has more than one run, else counted from its first block."""
    offsets = _moved(np.concatenate([[0], np.cumsum(runs.tiles)]), device)
    if (np.diff(runs.offsets) > 1).any():
        return BlocksArguments(offsets, _moved(runs.listed.indices, device), None)
    first = np.zeros(runs.tiles.size, dtype=np.int64)
    first[runs.rows] = runs.starts
    return BlocksArguments(offsets, None, _moved(first, device))


def _moved(array: np.ndarray, device: torch.device) -> Tensor:
    filled = array if array.size else np.zeros(1, dtype=np.int32)  # an empty tensor has no address
    return torch.from_numpy(np.ascontiguousarray(filled.ravel(), dtype=np.int32)).to(device)
