"""The walk of a program as kernels read it: its tiles, the blocks of each, and the pairs that may attend."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class BlocksArguments(NamedTuple):
    """The blocks that each tile visits, all full or all partial; see lowering.Walk."""

    offsets: Any
    indices: Any  # None: those of every row are one run of neighbours
    first: Any  # of the run of each row; None: they are listed


class WalkArguments(NamedTuple):
    """The blocks of all programs, as one argument of a kernel; see lowering.Walk."""

    full: Any
    partial: Any
    batch_rows: Any
    head_rows: Any


class ScheduleArguments(NamedTuple):
    """The tiles of all programs, as one argument of a kernel; see schedule.Schedule."""

    order: Any
    shares: Any  # None: one program per tile


@triton.jit
def share_of_program(schedule):
    """(first place in the order, tiles) of this program.

    Everything is on grid axis 0, which takes 2^31 - 1 programs; the other axes take 65,535. With one tile per
    program the count is a constant, so that the loop over tiles is compiled away.
    """
    program = tl.program_id(0)
    if schedule.shares is None:
        return program, 1
    else:
        first = tl.load(schedule.shares + program)
        return first, tl.load(schedule.shares + program + 1) - first


@triton.jit
def tile_at(schedule, place, blocks, heads):
    """(block, b, h) of the tile at this place of the order."""
    tile = tl.load(schedule.order + place)
    block, bh = tile % blocks, tile // blocks
    return block, bh // heads, bh % heads


@triton.jit
def start_of_list(blocks, row):
    """(first, length) of a row's list, for `listed`."""
    begin = tl.load(blocks.offsets + row)
    count = tl.load(blocks.offsets + row + 1) - begin
    if blocks.indices is None:
        return tl.load(blocks.first + row), count
    else:
        return begin, count


@triton.jit
def listed(blocks, first, t):
    """The t-th block of a row's list: read from it, or first + t if every row's list is one run of neighbours."""
    if blocks.indices is None:
        return first + t
    else:
        return tl.load(blocks.indices + first + t)


@triton.jit
def may_attend(MASK: tl.constexpr, table, b, h, i, j, q_len, k_len):
    """Whether query i may attend key j, and both exist. MASK None: every pair that exists may."""
    allowed = (i < q_len) & (j < k_len)
    if MASK is not None:
        # The predicate's tables have no entry past the end: read the last one.
        allowed &= MASK(table, b, h, tl.minimum(i, q_len - 1), tl.minimum(j, k_len - 1))
    return allowed
