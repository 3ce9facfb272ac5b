"""Which tiles does a program compute, over which blocks, and which pairs of a block may attend? As kernels read it."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class WalkArguments(NamedTuple):
    """The lists of blocks as one argument of a kernel; see lowering.Walk."""

    partial_offsets: Any
    partial_indices: Any
    full_offsets: Any
    full_indices: Any
    batch_rows: Any
    head_rows: Any


class ScheduleArguments(NamedTuple):
    """The tiles of each program as one argument of a kernel; see schedule.Schedule."""

    order: Any
    shares: Any  # None: a program a tile


@triton.jit
def share_of_program(schedule):
    """(first place in the order, tiles) of this program.

    Everything is on grid axis 0, which takes 2^31 - 1 programs; the other axes take 65,535. Of one tile the count is a
    constant, so that the loop over them is compiled away.
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
def start_of_list(LISTS: tl.constexpr, offsets, indices, row):
    """(first, length) of a row's list, for `listed`."""
    begin = tl.load(offsets + row)
    count = tl.load(offsets + row + 1) - begin
    if LISTS:
        return begin, count
    else:
        return tl.load(indices + row), count


@triton.jit
def listed(LISTS: tl.constexpr, indices, first, t):
    """The t-th block of a row's list: read from it, or first + t where every row's list is one run of neighbours."""
    if LISTS:
        return tl.load(indices + first + t)
    else:
        return first + t


@triton.jit
def may_attend(MASK: tl.constexpr, table, b, h, i, j, q_len, k_len):
    """Whether query i may attend key j, and both exist. MASK None: every pair that exists may."""
    allowed = (i < q_len) & (j < k_len)
    if MASK is not None:
        # Past the end the predicate's tables have no entry: ask about the last one that has.
        allowed &= MASK(table, b, h, tl.minimum(i, q_len - 1), tl.minimum(j, k_len - 1))
    return allowed
