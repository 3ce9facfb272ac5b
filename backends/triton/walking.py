"""Which blocks does a program compute, and which pairs of a block may attend? The block map as kernels read it."""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class WalkArguments(NamedTuple):
    """The lists of blocks as one argument of a kernel; see lowering.Walk."""

    order: Any
    partial_offsets: Any
    partial_indices: Any
    full_offsets: Any
    full_indices: Any
    batch_rows: Any
    head_rows: Any


@triton.jit
def block_of_program(walk, blocks, heads, group):
    """(block, b, h, row of the block map) of this program: blocks of one head side by side, the longest first.

    Everything is on grid axis 0, which takes 2^31 - 1 programs; the other axes take 65,535. Blocks of a head share its
    keys and values in the L2 cache, and starting with the longest leaves the short ones to fill the end. Where `heads`
    are those of keys, `group` query heads share one, and the first of them gives the order.
    """
    program = tl.program_id(0)
    place, bh = program % blocks, program // blocks
    b, h = bh // heads, bh % heads
    first = b * walk.batch_rows + h * group * walk.head_rows
    block = tl.load(walk.order + first + place)
    return block, b, h, first + block


@triton.jit
def start_of_list(LISTS: tl.constexpr, offsets, indices, row):
    """(first, length) of a row's list, for `listed`."""
    begin = tl.load(offsets + row)
    count = tl.load(offsets + row + 1) - begin
    if LISTS:
        return begin, count
    else:
        return tl.load(indices + begin, mask=count > 0, other=0), count


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
