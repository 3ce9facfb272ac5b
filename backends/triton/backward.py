"""dq, dk and dv: FlashAttention-2's backward (Dao 2023, arXiv 2307.08691, Algorithm 2).

P is recomputed from the saved log-sum-exp, so nothing of size Q x K is kept. The paper's single kernel adds to dQ
atomically; here one kernel owns a block of dQ and another a block of dK and dV, so there is no race and two runs give
the same bits. Query heads that share a key head are summed inside the program that owns its block.
"""

import triton
import triton.language as tl

from .logits import LOG2_E, logits
from .tiles import add_product, inner_product, load_tile, row_sums, store_tile, zero_tile
from .walking import listed, may_attend, share_of_program, start_of_list, tile_at


@triton.jit
def delta_kernel(
    O, DO, DELTA, o_strides, do_strides, heads, q_len,
    DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr, BLOCK_Q: tl.constexpr,
):  # fmt: skip
    """delta = rowsum(dO * O), float32 [B, H, Q]: line 4 of Algorithm 2."""
    blocks = tl.cdiv(q_len, BLOCK_Q)
    program = tl.program_id(0)
    start, bh = program % blocks * BLOCK_Q, program // blocks
    b, h = bh // heads, bh % heads
    o = load_tile(O, b, h, start, q_len, o_strides, DV, DV0, DV1, BLOCK_Q, True)
    do = load_tile(DO, b, h, start, q_len, do_strides, DV, DV0, DV1, BLOCK_Q, True)
    i = start + tl.arange(0, BLOCK_Q)
    tl.store(DELTA + tl.cast(bh, tl.int64) * q_len + i, row_sums(do, o, DV1), mask=i < q_len)


@triton.jit
def load_lse(LSE, b, h, heads, i, q_len):
    """The LSE of queries i in base 2; +inf for rows with no key and past the end, so that exp2(s - lse) is 0."""
    lse = tl.load(LSE + (tl.cast(b, tl.int64) * heads + h) * q_len + i, mask=i < q_len, other=float("inf"))
    return tl.where(lse == float("-inf"), float("inf"), lse * LOG2_E)


@triton.jit
def load_delta(DELTA, b, h, heads, i, q_len):
    """delta of queries i, 0 past the end."""
    return tl.load(DELTA + (tl.cast(b, tl.int64) * heads + h) * q_len + i, mask=i < q_len, other=0.0)


@triton.jit
def probabilities(
    products, lse, b, h, i, j, q_len, k_len, scale, changes, table,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """(P, slope of the logits) of pairs (i, j): line 11, P = exp(S - L)."""
    if SCALE_IN_EXP:
        slope = 1.0
        p = tl.exp2(products * (scale * LOG2_E) - lse)
    else:
        s, slope = logits(products, b, h, i, j, q_len, k_len, scale, changes)
        p = tl.exp2(s - lse)
    if PARTIAL:
        p = tl.where(may_attend(MASK, table, b, h, i, j, q_len, k_len), p, 0.0)
    return p, slope


@triton.jit
def add_query_block(
    dk, dv, k, v, m, Q, DO, LSE, DELTA, q_strides, do_strides, heads, b, h, j, q_len, k_len, scale, changes, table,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr, WITH_DK: tl.constexpr, WITH_DV: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_Q: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Add query block m to (dk, dv), on transposed tiles [BLOCK_K, BLOCK_Q]: P^T and dS^T are left operands."""
    i = m * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q = load_tile(Q, b, h, m * BLOCK_Q, q_len, q_strides, D, D0, D1, BLOCK_Q, PARTIAL)
    do = load_tile(DO, b, h, m * BLOCK_Q, q_len, do_strides, DV, DV0, DV1, BLOCK_Q, PARTIAL)
    lse = load_lse(LSE, b, h, heads, i, q_len)
    p, slope = probabilities(
        inner_product(k, q, D1), lse[None, :], b, h, i[None, :], j[:, None], q_len, k_len, scale, changes, table,
        MASK, SCALE_IN_EXP, PARTIAL,
    )  # fmt: skip
    if WITH_DV:
        dv = add_product(dv, p, do, DV1)  # line 12: dV += P^T dO
    if WITH_DK:
        dp = inner_product(v, do, DV1)  # line 13: dP = dO V^T
        # Loaded this late because in this transposed tile each thread holds the statistics of many queries.
        delta = load_delta(DELTA, b, h, heads, i, q_len)
        ds = p * (dp - delta[None, :]) * slope  # line 14: dS = P * (dP - delta)
        dk = add_product(dk, ds, q, D1)  # line 16: dK += dS^T Q
    return dk, dv


@triton.jit
def dk_dv_kernel(
    Q, K, V, DO, LSE, DELTA, DK, DVALUE, q_strides, k_strides, v_strides, do_strides, dk_strides, dv_strides,
    heads, group, q_len, k_len, scale, changes, table, walk, schedule,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, WITH_DK: tl.constexpr, WITH_DV: tl.constexpr,
):  # fmt: skip
    """dK and dV of this program's key blocks, over all query heads of their group.

    If the registers do not hold both accumulators (head dims above 128), one launch computes dK and another dV.
    """
    place, tiles = share_of_program(schedule)
    for turn in tl.range(0, tiles, disable_licm=True):  # code hoisted out of it would hold registers in it
        block, b, kv_h = tile_at(schedule, place + turn, tl.cdiv(k_len, BLOCK_K), heads // group)
        start = block * BLOCK_K
        j = start + tl.arange(0, BLOCK_K)
        k = load_tile(K, b, kv_h, start, k_len, k_strides, D, D0, D1, BLOCK_K, True)
        v = load_tile(V, b, kv_h, start, k_len, v_strides, DV, DV0, DV1, BLOCK_K, True)
        dk = zero_tile(BLOCK_K, D0, D1)
        dv = zero_tile(BLOCK_K, DV0, DV1)
        for member in range(0, group):  # noqa: PIE808
            h = kv_h * group + member
            row = b * walk.batch_rows + h * walk.head_rows + block
            for PARTIAL in tl.static_range(2):
                lists = walk.partial if PARTIAL else walk.full
                first, count = start_of_list(lists, row)
                for t in range(0, count):  # noqa: PIE808
                    m = listed(lists, first, t)
                    dk, dv = add_query_block(
                        dk, dv, k, v, m, Q, DO, LSE, DELTA, q_strides, do_strides, heads, b, h, j, q_len, k_len, scale,
                        changes, table, MASK, SCALE_IN_EXP, WITH_DK, WITH_DV, D, D0, D1, DV, DV0, DV1, BLOCK_Q, PARTIAL,
                    )  # fmt: skip
        if WITH_DK:
            store_tile(dk, scale, DK, b, kv_h, start, k_len, dk_strides, D, D0, D1, BLOCK_K)
        if WITH_DV:
            store_tile(dv, 1.0, DVALUE, b, kv_h, start, k_len, dv_strides, DV, DV0, DV1, BLOCK_K)


@triton.jit
def logit_gradient(
    q, do, lse, delta, n, K, V, k_strides, v_strides, b, h, kv_h, i, q_len, k_len, scale, changes, table,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_K: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """(dS, slope, k) of key block n: lines 11 to 14, dS = P * (dP - delta), before softcap's slope."""
    j = n * BLOCK_K + tl.arange(0, BLOCK_K)
    k = load_tile(K, b, kv_h, n * BLOCK_K, k_len, k_strides, D, D0, D1, BLOCK_K, PARTIAL)
    v = load_tile(V, b, kv_h, n * BLOCK_K, k_len, v_strides, DV, DV0, DV1, BLOCK_K, PARTIAL)
    p, slope = probabilities(
        inner_product(q, k, D1), lse[:, None], b, h, i[:, None], j[None, :], q_len, k_len, scale, changes, table,
        MASK, SCALE_IN_EXP, PARTIAL,
    )  # fmt: skip
    return p * (inner_product(do, v, DV1) - delta[:, None]), slope, k


@triton.jit
def dq_kernel(
    Q, K, V, DO, LSE, DELTA, DQ, q_strides, k_strides, v_strides, do_strides, dq_strides,
    heads, group, q_len, k_len, scale, changes, table, walk, schedule,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """dQ of this program's query blocks: line 15, dQ += dS K, accumulated on chip instead of in memory."""
    place, tiles = share_of_program(schedule)
    for turn in tl.range(0, tiles, disable_licm=True):  # code hoisted out of it would hold registers in it
        block, b, h = tile_at(schedule, place + turn, tl.cdiv(q_len, BLOCK_Q), heads)
        row = b * walk.batch_rows + h * walk.head_rows + block
        kv_h = h // group
        start = block * BLOCK_Q
        i = start + tl.arange(0, BLOCK_Q)
        q = load_tile(Q, b, h, start, q_len, q_strides, D, D0, D1, BLOCK_Q, True)
        do = load_tile(DO, b, h, start, q_len, do_strides, DV, DV0, DV1, BLOCK_Q, True)
        lse = load_lse(LSE, b, h, heads, i, q_len)
        delta = load_delta(DELTA, b, h, heads, i, q_len)
        dq = zero_tile(BLOCK_Q, D0, D1)
        for PARTIAL in tl.static_range(2):
            lists = walk.partial if PARTIAL else walk.full
            first, count = start_of_list(lists, row)
            for t in range(0, count):  # noqa: PIE808
                n = listed(lists, first, t)
                ds, slope, k = logit_gradient(
                    q, do, lse, delta, n, K, V, k_strides, v_strides, b, h, kv_h, i, q_len, k_len, scale, changes,
                    table, MASK, SCALE_IN_EXP, D, D0, D1, DV, DV0, DV1, BLOCK_K, PARTIAL,
                )  # fmt: skip
                dq = add_product(dq, ds * slope, k, D1)
        store_tile(dq, scale, DQ, b, h, start, q_len, dq_strides, D, D0, D1, BLOCK_Q)
