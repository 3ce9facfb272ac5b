"""The output: FlashAttention-2's forward (Dao 2023, arXiv 2307.08691, Algorithm 1).

One program computes one block of queries. It walks over the key blocks that its row of the block map lists: full
blocks without the mask, then partial blocks with the predicate. Empty blocks are never loaded. The softmax is online
(section 3.1 of the paper): the row maximum m and the row sum l are corrected block by block, and only the
log-sum-exp is kept for the backward. Rows with no key give 0 and an LSE of -inf (or the sink's logit).
"""

import triton
import triton.language as tl

from .logits import LN_2, LOG2_E, logits
from .tiles import add_product, inner_product, load_tile, scale_rows, store_tile, zero_tile
from .walking import listed, may_attend, share_of_program, start_of_list, tile_at


@triton.jit
def attend_block(
    acc, l, m, q, n, K, V, k_strides, v_strides, b, h, kv_h, i, q_len, k_len, scale, changes, table,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_K: tl.constexpr, PARTIAL: tl.constexpr,
):  # fmt: skip
    """Add key block n to (acc, l, m): lines 6 to 10 of Algorithm 1."""
    j = n * BLOCK_K + tl.arange(0, BLOCK_K)
    k = load_tile(K, b, kv_h, n * BLOCK_K, k_len, k_strides, D, D0, D1, BLOCK_K, PARTIAL)
    s = inner_product(q, k, D1)  # [BLOCK_Q, BLOCK_K]
    if SCALE_IN_EXP:
        factor = scale * LOG2_E
    else:
        s, _ = logits(s, b, h, i[:, None], j[None, :], q_len, k_len, scale, changes)
        factor = 1.0
    if PARTIAL:
        s = tl.where(may_attend(MASK, table, b, h, i[:, None], j[None, :], q_len, k_len), s, float("-inf"))
    m_new = tl.maximum(m, tl.max(s, 1) * factor)
    # A row without a key so far has the maximum -inf, and -inf - -inf is NaN.
    m_finite = tl.where(m_new == float("-inf"), 0.0, m_new)
    p = tl.exp2(s * factor - m_finite[:, None])
    alpha = tl.exp2(m - m_finite)
    l = l * alpha + tl.sum(p, 1)
    v = load_tile(V, b, kv_h, n * BLOCK_K, k_len, v_strides, DV, DV0, DV1, BLOCK_K, PARTIAL)
    acc = add_product(scale_rows(acc, alpha, DV1), p, v, DV1)
    return acc, l, m_new


@triton.jit
def start_rows(sink, h, BLOCK_Q: tl.constexpr):
    """(l, m) before any key. A sink is a first key without a value: its weight is exp2(m - m) = 1."""
    if sink is None:
        return tl.zeros([BLOCK_Q], tl.float32), tl.full([BLOCK_Q], float("-inf"), tl.float32)
    else:
        m = tl.zeros([BLOCK_Q], tl.float32) + tl.load(sink + h).to(tl.float32) * LOG2_E
        return tl.full([BLOCK_Q], 1.0, tl.float32), m


@triton.jit
def finish_rows(l, m):
    """(1 / l, LSE) after the last key, lines 12 and 13: 0 and -inf for rows without a key."""
    seen = l > 0.0
    l = tl.where(seen, l, 1.0)
    return 1.0 / l, tl.where(seen, (m + tl.log2(l)) * LN_2, float("-inf"))


@triton.jit
def forward_kernel(
    Q, K, V, O, LSE, q_strides, k_strides, v_strides, o_strides,
    heads, group, q_len, k_len, scale, changes, sink, table, walk, schedule,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """O [B, H, Q, Dv] and LSE [B, H, Q] (natural logarithm) of this program's query blocks."""
    place, tiles = share_of_program(schedule)
    for turn in tl.range(0, tiles, disable_licm=True):  # code hoisted out of it would hold registers in it
        block, b, h = tile_at(schedule, place + turn, tl.cdiv(q_len, BLOCK_Q), heads)
        row = b * walk.batch_rows + h * walk.head_rows + block
        kv_h = h // group
        start = block * BLOCK_Q
        i = start + tl.arange(0, BLOCK_Q)
        q = load_tile(Q, b, h, start, q_len, q_strides, D, D0, D1, BLOCK_Q, True)
        acc = zero_tile(BLOCK_Q, DV0, DV1)
        l, m = start_rows(sink, h, BLOCK_Q)
        for PARTIAL in tl.static_range(2):  # full blocks, then partial ones: two loops, compiled separately
            lists = walk.partial if PARTIAL else walk.full
            first, count = start_of_list(lists, row)
            for t in range(0, count):  # noqa: PIE808
                n = listed(lists, first, t)
                acc, l, m = attend_block(
                    acc, l, m, q, n, K, V, k_strides, v_strides, b, h, kv_h, i, q_len, k_len, scale, changes, table,
                    MASK, SCALE_IN_EXP, D, D0, D1, DV, DV0, DV1, BLOCK_K, PARTIAL,
                )  # fmt: skip
        one_over_l, lse = finish_rows(l, m)
        tl.store(LSE + (tl.cast(b, tl.int64) * heads + h) * q_len + i, lse, mask=i < q_len)
        store_tile(acc, one_over_l[:, None], O, b, h, start, q_len, o_strides, DV, DV0, DV1, BLOCK_Q)
