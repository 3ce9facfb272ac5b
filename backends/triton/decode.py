"""Few queries over many keys: split-KV (FlashDecoding). The keys are split, and the parts merged by their LSE.

A forward whose queries fill one tile has one program per head, too few to keep a GPU's memory busy. Here the query
heads that share a key head are the rows of one tile, so its keys are read once, and `splits` programs each take a part
of its key blocks. Each part is a separate softmax with its log-sum-exp; `combine_kernel` weighs them:

    O = sum_s 2^(L_s - L) O_s,  L = log2 sum_s 2^L_s

A part without a key has L_s = -inf and weight 0; a row of only such parts gives 0 and -inf.
"""

import triton
import triton.language as tl

from attnbench.problem import Case

from .forward import attend_block, finish_rows
from .logits import LN_2, LOG2_E
from .tiles import zero_tile
from .walking import listed, start_of_list

MOST_ROWS = 64  # query heads of a group x queries that one tile takes
FEWEST_TILES = 2  # key blocks that are worth a program
MOST_SPLITS = 64  # parts that the combining program holds in registers
KEYS_PER_QUERY = 16  # with fewer keys per query it is no decode


def splits(case: Case, block_k: int, processors: int) -> int:
    """The number of parts of the keys on a GPU with so many multiprocessors; 1: the ordinary forward.

    The keys are split if the rows fit one tile, all heads see the same keys (one list of blocks serves the tile),
    there are many keys per query, and the ordinary forward would leave multiprocessors idle. The parts fill these
    twice, with at least two key blocks each.
    """
    rows = case.group * case.q_len
    if rows > MOST_ROWS or case.mask.varies_over_heads or case.k_len < KEYS_PER_QUERY * case.q_len:
        return 1
    programs = case.batch * case.kv_heads
    if programs >= 2 * processors:
        return 1
    wanted = min(MOST_SPLITS, -(-2 * processors // programs))
    return max(1, min(wanted, -(-case.k_len // block_k) // FEWEST_TILES))


@triton.jit
def load_rows(X, b, h, i, inside, strides, D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr):
    """The rows X[b, h, i], of different heads, as a tile; 0 where not `inside`."""
    rows = X + tl.cast(b, tl.int64) * strides[0] + tl.cast(h, tl.int64)[:, None] * strides[1]
    rows += tl.cast(i, tl.int64)[:, None] * strides[2]
    c = tl.arange(0, D0)[None, :]
    x0 = tl.load(rows + c * strides[3], mask=inside[:, None] & (c < D), other=0.0)
    if D1 == 0:
        return (x0,)
    else:
        c1 = D0 + tl.arange(0, D1)[None, :]
        return (x0, tl.load(rows + c1 * strides[3], mask=inside[:, None] & (c1 < D), other=0.0))


@triton.jit
def decode_kernel(
    Q, K, V, PART, PART_LSE, q_strides, k_strides, v_strides,
    splits, heads, group, q_len, k_len, scale, changes, table, walk,
    MASK: tl.constexpr, SCALE_IN_EXP: tl.constexpr,
    D: tl.constexpr, D0: tl.constexpr, D1: tl.constexpr, DV: tl.constexpr, DV0: tl.constexpr, DV1: tl.constexpr,
    ROWS: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """PART float32 [splits, B, H, Q, Dv] and PART_LSE [splits, B, H, Q] (base 2) of one split of one key head."""
    program = tl.program_id(0)
    split, plane = program % splits, program // splits
    kv_heads = heads // group
    b, kv_h = plane // kv_heads, plane % kv_heads
    r = tl.arange(0, ROWS)
    inside = r < group * q_len
    h, i = kv_h * group + tl.where(inside, r // q_len, 0), r % q_len
    q = load_rows(Q, b, h, i, inside, q_strides, D, D0, D1)
    acc = zero_tile(ROWS, DV0, DV1)
    l = tl.zeros([ROWS], tl.float32)
    m = tl.full([ROWS], float("-inf"), tl.float32)
    # The queries are one block of the map; all its tiles are listed as partial ones, and masked.
    first, count = start_of_list(walk.partial, b * walk.batch_rows)
    share = tl.cdiv(count, splits)
    for t in range(split * share, tl.minimum(split * share + share, count)):
        n = listed(walk.partial, first, t)
        acc, l, m = attend_block(
            acc, l, m, q, n, K, V, k_strides, v_strides, b, h[:, None], kv_h, i, q_len, k_len, scale, changes, table,
            MASK, SCALE_IN_EXP, D, D0, D1, DV, DV0, DV1, BLOCK_K, True,
        )  # fmt: skip
    one_over_l, lse = finish_rows(l, m)
    batch = tl.num_programs(0) // (splits * kv_heads)
    row = ((tl.cast(split, tl.int64) * batch + b) * heads + h) * q_len + i
    tl.store(PART_LSE + row, lse * LOG2_E, mask=inside)
    c = tl.arange(0, DV0)[None, :]
    at = PART + row[:, None] * DV
    tl.store(at + c, acc[0] * one_over_l[:, None], mask=inside[:, None] & (c < DV))
    if DV1 != 0:
        c = DV0 + tl.arange(0, DV1)[None, :]
        tl.store(at + c, acc[1] * one_over_l[:, None], mask=inside[:, None] & (c < DV))


@triton.jit
def combine_kernel(
    PART, PART_LSE, O, LSE, o_strides, sink, splits, rows, heads, q_len,
    DV: tl.constexpr, COLUMNS: tl.constexpr, SPLITS: tl.constexpr,
):  # fmt: skip
    """O [B, H, Q, Dv] and LSE [B, H, Q] (natural logarithm) of one query a program, from its parts."""
    row = tl.cast(tl.program_id(0), tl.int64)
    i, bh = row % q_len, row // q_len
    b, h = bh // heads, bh % heads
    s = tl.arange(0, SPLITS)
    lse = tl.load(PART_LSE + s * tl.cast(rows, tl.int64) + row, mask=s < splits, other=float("-inf"))
    m = tl.max(lse, 0)
    if sink is not None:
        at_sink = tl.load(sink + h).to(tl.float32) * LOG2_E
        m = tl.maximum(m, at_sink)
    m_finite = tl.where(m == float("-inf"), 0.0, m)
    weight = tl.exp2(lse - m_finite)
    total = tl.sum(weight, 0)
    if sink is not None:
        total += tl.exp2(at_sink - m_finite)
    one_over = 1.0 / tl.where(total > 0.0, total, 1.0)
    c = tl.arange(0, COLUMNS)
    at = PART + (s * tl.cast(rows, tl.int64) + row)[:, None] * DV + c[None, :]
    part = tl.load(at, mask=(s < splits)[:, None] & (c < DV)[None, :], other=0.0)  # [SPLITS, COLUMNS]
    out = tl.sum(part * (weight * one_over)[:, None], 0)
    tl.store(
        O + b * o_strides[0] + h * o_strides[1] + i * o_strides[2] + c * o_strides[3],
        out.to(O.dtype.element_ty),
        mask=c < DV,
    )
    tl.store(
        LSE + row,
        tl.where(total > 0.0, (m_finite + tl.log2(tl.where(total > 0.0, total, 1.0))) * LN_2, float("-inf")),
    )
