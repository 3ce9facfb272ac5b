"""The gradient of a bias, reduced over the dimensions that it is broadcast over, without a race.

dS is the gradient of each logit, and of the bias added to it: dBias is the sum of dS over the pairs that read the
same entry. One program owns one block of queries and walks its blocks for all batch rows and heads that share the
bias, so each entry is added up by one program in one order: no atomics, the same bits in every run.
"""

import triton
import triton.language as tl

from .backward import load_delta, load_lse, logit_gradient
from .tiles import load_tile
from .walking import listed, start_of_list


@triton.jit
def add_to_gradient(
    ds,
    base,
    r,
    block,
    n,
    i,
    q_len,
    k_len,
    strides,
    BLOCK_K: tl.constexpr,
    OVER_Q: tl.constexpr,
    OVER_K: tl.constexpr,
):
    """Add a tile of dS [BLOCK_Q, BLOCK_K] to its entries, summed first over a dimension that the bias lacks.

    A bias without queries gets one row per block of queries; the host adds these up.
    """
    # Another thread of this program may have written in the last step what a thread reads here.
    tl.debug_barrier()
    j = n * BLOCK_K + tl.arange(0, BLOCK_K)
    down = tl.cast(r if OVER_Q else block, tl.int64) * strides[2]
    right = tl.cast(j, tl.int64) * strides[3]
    if OVER_Q and OVER_K:
        at = base + down[:, None] + right[None, :]
        inside = (i < q_len)[:, None] & (j < k_len)[None, :]
        tl.store(at, tl.load(at, mask=inside, other=0.0) + ds, mask=inside)
    elif OVER_Q:
        at, inside = base + down, i < q_len
        tl.store(at, tl.load(at, mask=inside, other=0.0) + tl.sum(ds, 1), mask=inside)
    elif OVER_K:
        at, inside = base + down + right, j < k_len
        tl.store(at, tl.load(at, mask=inside, other=0.0) + tl.sum(ds, 0), mask=inside)
    else:
        at = base + down
        tl.store(at, tl.load(at) + tl.sum(tl.sum(ds, 0), 0))


@triton.jit
def bias_gradient_kernel(
    Q, K, V, DO, LSE, DELTA, GRADIENT, q_strides, k_strides, v_strides, do_strides, gradient_strides,
    first_block, blocks, shared_batch, shared_heads, own_heads,
    heads, group, q_len, k_len, scale, changes, table, walk,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, OVER_Q: tl.constexpr, OVER_K: tl.constexpr,
):  # fmt: skip
    """GRADIENT float32 [B|1, H|1, Q or blocks of Q, K or 1], initially zero.

    The bias has `own_heads` heads (1 or all); shared_batch and shared_heads count the rows and heads that read one
    entry. `blocks` query blocks from `first_block` on are computed, and the first row of GRADIENT is the first of
    them.
    """
    program = tl.program_id(0)
    block, plane = program % blocks, program // blocks
    own_b, own_h = plane // own_heads, plane % own_heads
    base = (
        GRADIENT
        + tl.cast(own_b, tl.int64) * gradient_strides[0]
        + tl.cast(own_h, tl.int64) * gradient_strides[1]
    )
    r = block * BLOCK_Q + tl.arange(0, BLOCK_Q)
    start = (first_block + block) * BLOCK_Q
    i = start + tl.arange(0, BLOCK_Q)
    for share in range(0, shared_batch * shared_heads):  # noqa: PIE808 - Triton's range takes a start
        b = own_b + share // shared_heads
        h = own_h + share % shared_heads
        kv_h = h // group
        q = load_tile(Q, b, h, start, q_len, q_strides, D, D0, D1, BLOCK_Q, True)
        do = load_tile(DO, b, h, start, q_len, do_strides, DV, DV0, DV1, BLOCK_Q, True)
        lse = load_lse(LSE, b, h, heads, i, q_len)
        delta = load_delta(DELTA, b, h, heads, i, q_len)
        row = b * walk.batch_rows + h * walk.head_rows + first_block + block
        for PARTIAL in tl.static_range(2):
            lists = walk.partial if PARTIAL else walk.full
            first, count = start_of_list(lists, row)
            for t in range(0, count):  # noqa: PIE808
                n = listed(lists, first, t)
                ds, _, _ = logit_gradient(
                    q, do, lse, delta, n, K, V, k_strides, v_strides, b, h, kv_h, i, q_len, k_len, scale, changes,
                    table, MASK, SCALE_IN_EXP, D, D0, D1, DV, DV0, DV1, BLOCK_K, PARTIAL,
                )  # fmt: skip
                add_to_gradient(
                    ds, base, r, block, n, i, q_len, k_len, gradient_strides, BLOCK_K, OVER_Q, OVER_K
                )
