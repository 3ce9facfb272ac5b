"""The logits: the products q k^T after scale, softcap and biases, in the canonical order.

They are in base 2 (times log2 e), because the hardware's exponential is exp2.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def tanh(x):
    """tanh to about 2 ulp everywhere: Cephes' odd polynomial near 0, where 1 - 2 / (1 + e^2x) would cancel."""
    z = x * x
    p = -5.70498872745e-3
    p = p * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    small = p * z * x + x
    far = 1.0 - 2.0 / (1.0 + tl.exp2(tl.abs(x) * (2.0 * LOG2_E)))
    return tl.where(tl.abs(x) < 0.625, small, tl.where(x < 0.0, -far, far))


class ChangeArguments(NamedTuple):
    """The score changes as one argument of a kernel; None is compiled away."""

    softcap: Any  # the cap
    slopes: Any  # ALiBi's, float32 [H]
    bias: Any  # [B|1, H|1, Q|1, K|1]
    bias_strides: Any  # four, 0 where it is broadcast
    relative: Any  # [H, offsets]
    relative_stride: Any  # from one head to the next
    row: Any  # int32 [Q]; the pair (i, j) reads the offset row[i] - column[j]
    column: Any  # int32 [K]


@triton.jit
def logits(products, b, h, i, j, q_len, k_len, scale, changes):
    """(logits in base 2, d logit / d (scale * product)) of the pairs of queries i and keys j.

    i and j broadcast to the shape of `products`: [M, 1] and [1, N], or [1, M] and [N, 1].
    """
    s = products * scale
    slope = 1.0
    inside = (i < q_len) & (j < k_len)
    if changes.softcap is not None:
        # Gemma 2 (arXiv 2408.00118): cap * tanh(s / cap), whose derivative is 1 - tanh^2.
        t = tanh(s / changes.softcap)
        s = changes.softcap * t
        slope = 1.0 - t * t
    if changes.bias is not None:
        at = (
            changes.bias
            + tl.cast(b, tl.int64) * changes.bias_strides[0]
            + tl.cast(h, tl.int64) * changes.bias_strides[1]
        )
        at += tl.cast(i, tl.int64) * changes.bias_strides[2] + tl.cast(j, tl.int64) * changes.bias_strides[3]
        s += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    if changes.relative is not None:
        offset = tl.load(changes.row + i, mask=i < q_len, other=0) - tl.load(
            changes.column + j, mask=j < k_len, other=0
        )
        s += tl.load(changes.relative + h * changes.relative_stride + offset, mask=inside, other=0.0).to(
            tl.float32
        )
    if changes.slopes is not None:
        # ALiBi (arXiv 2108.12409): -slope * |p - j|, p the query's position among the keys.
        distance = tl.abs(i + (k_len - q_len) - j)
        s -= tl.load(changes.slopes + h) * distance.to(tl.float32)
    return s * LOG2_E, slope
