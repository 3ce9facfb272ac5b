"""Named input distributions, each there for a real bug that shows only under it.

Every distribution starts from the same normal numbers and changes what its bug needs. All are finite and, in
a forward or backward of the exact answer, stay below fp16's largest number.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from attnbench.problem.case import Case

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Drawn = tuple[
        Tensor, Tensor, Tensor, Tensor
    ]  # q [B,H,Q,D], k [B,Hkv,K,D], v [B,Hkv,K,Dv], dout [B,H,Q,Dv]
    Generators = Callable[[str], torch.Generator]


def _randn(case: Case, generator: Generators) -> Drawn:
    """Standard normal."""
    import torch

    def draw(name: str, heads: int, length: int, dim: int) -> Tensor:
        return torch.randn(case.batch, heads, length, dim, generator=generator(name))

    return (
        draw("q", case.q_heads, case.q_len, case.head_dim),
        draw("k", case.kv_heads, case.k_len, case.head_dim),
        draw("v", case.kv_heads, case.k_len, case.v_dim),
        draw("dout", case.q_heads, case.q_len, case.v_dim),
    )


def _large(case: Case, generator: Generators) -> Drawn:
    """q and k eight times as large: exp overflows unless the maximum is subtracted."""
    q, k, v, dout = _randn(case, generator)
    return 8 * q, 8 * k, v, dout


def _positive(case: Case, generator: Generators) -> Drawn:
    """Uniform in (0, 1): sums only grow, so a short accumulator stops counting."""
    import torch

    q, k, v, dout = (torch.special.ndtr(x) for x in _randn(case, generator))
    return q, k, v, dout


def _one_hot(case: Case, generator: Generators) -> Drawn:
    """Query i points at the keys j = i modulo D: a fetched value shows its origin."""
    import torch

    q, k, v, dout = _randn(case, generator)
    # 8 times 8 over sqrt(D) scores at any scale: the chosen keys take nearly all of the weight.
    height = math.sqrt(24 / abs(case.softmax_scale)) if case.softmax_scale else 8.0
    for x in (q, k):
        which = torch.arange(x.shape[2]) % case.head_dim
        x.zero_()
        x[:, :, torch.arange(x.shape[2]), which] = height
    return q, k, v, dout


def _constant_v(case: Case, generator: Generators) -> Drawn:
    """Every value the same: out is that value, and dq and dk vanish by cancellation."""
    q, k, v, dout = _randn(case, generator)
    return q, k, v[:, :, :1].expand_as(v).clone(), dout


def _aligned(case: Case, generator: Generators, score: Callable[[int], Tensor]) -> Drawn:
    # q and k small, plus one feature whose product is score(key) for every query.
    q, k, v, dout = _randn(case, generator)
    q, k = 0.5 * q, 0.5 * k
    scale = case.softmax_scale or 1.0
    height = math.sqrt(128 / abs(scale))
    q[..., 0] = height
    k[..., 0] = score(case.k_len) / (scale * height)
    return q, k, v, dout


def _rising(case: Case, generator: Generators) -> Drawn:
    """Scores rise by 40 along the keys: each tile has a new maximum, and everything before it is rescaled."""
    import torch

    return _aligned(case, generator, lambda k_len: torch.linspace(-20, 20, k_len))


def _negative_lse(case: Case, generator: Generators) -> Drawn:
    """All scores near -120: a tail scored 0, or a maximum that starts at 0, outweighs everything."""
    import torch

    return _aligned(case, generator, lambda k_len: torch.full((k_len,), -120.0))


def _huge_negative(case: Case, generator: Generators) -> Drawn:
    """Scores near -5e5 in D 64: below every finite stand-in for -inf, and beyond fp16 if products are kept in it."""
    q, k, v, dout = _randn(case, generator)
    q[..., 0], k[..., 0] = 2048.0, -2048.0
    return q, k, v, dout


def _near_constant_v(case: Case, generator: Generators) -> Drawn:
    """Weights nearly equal, values 1 and a little: low-precision sums stop growing."""
    q, k, v, dout = _randn(case, generator)
    return q / 8, k / 8, 1 + v / 64, dout


def _sign_flipped_v(case: Case, generator: Generators) -> Drawn:
    """Values near 1 in the first half of the keys and near -1 in the second: sums grow large, then cancel."""
    q, k, v, dout = _randn(case, generator)
    v = 1 + v / 64
    v[:, :, case.k_len // 2 :] *= -1
    # One sign of dO keeps dP from cancelling before the keys do.
    return q / 8, k / 8, v, dout.abs()


def _sign_flipped_dout(case: Case, generator: Generators) -> Drawn:
    """dO near 1 in the first half of the queries and near -1 in the second: dk and dv grow large, then cancel."""
    q, k, v, dout = _randn(case, generator)
    dout = 1 + dout / 64
    dout[:, :, case.q_len // 2 :] *= -1
    # Queries near 1 add up in dk as dO does in dv.
    return 1 + q / 4, k / 8, v, dout


def _cancelling_dq(case: Case, generator: Generators) -> Drawn:
    """Sign-flipped values and keys with a mean: the sums of dq grow large, then cancel, as those of out do.

    The scores of a row move together, so P stays. It shows torch's CPU flash backward, which adds dq up in bf16.
    """
    q, k, v, dout = _sign_flipped_v(case, generator)
    return q, k + 1, v, dout


def _sink_key(case: Case, generator: Generators) -> Drawn:
    """The first keys take nearly all weight and have tiny values: out is made of the small weights."""
    import torch

    def score(k_len: int) -> Tensor:
        return torch.where(torch.arange(k_len) < 2, 9.0, 0.0)

    q, k, v, dout = _aligned(case, generator, score)
    v[:, :, :2] /= 1024
    return q, k, v, dout


def _subnormal_v(case: Case, generator: Generators) -> Drawn:
    """Values in fp16's subnormal range, which a careless kernel flushes to zero."""
    q, k, v, dout = _randn(case, generator)
    return q, k, v * 2.0**-17, dout


def _huge_unseen(case: Case, generator: Generators) -> Drawn:
    """Huge finite keys and values where no query may attend: a leak shows, and a weight of 0 still gives 0."""
    import torch

    q, k, v, dout = _randn(case, generator)
    huge = 1e3 if case.dtype == "fp16" else 1e30
    unseen = torch.from_numpy(~seen_keys(case))[..., None]  # [B, Hkv, K, 1]
    return q, torch.where(unseen, huge, k), torch.where(unseen, -huge, v), dout


def seen_keys(case: Case) -> np.ndarray:
    """Whether some query of the key head may attend each key: bool [B, Hkv, K]."""
    seen = np.zeros((case.batch, case.kv_heads, case.k_len), dtype=bool)
    rows_at_once = max(1, (1 << 20) // case.k_len)
    for b in range(case.batch if case.mask.varies_over_batch else 1):
        for h in range(case.q_heads if case.mask.varies_over_heads else 1):
            change = np.zeros(case.k_len + 1, dtype=np.int64)
            for first in range(0, case.q_len, rows_at_once):
                rows = np.arange(first, min(first + rows_at_once, case.q_len), dtype=np.int64)
                starts, ends = case.mask.spans(case.extent, b, h, rows)
                some = ends > starts
                change += np.bincount(starts[some], minlength=case.k_len + 1)
                change -= np.bincount(ends[some], minlength=case.k_len + 1)
            batches = slice(b, b + 1) if case.mask.varies_over_batch else slice(None)
            heads = (
                slice(h // case.group, h // case.group + 1) if case.mask.varies_over_heads else slice(None)
            )
            seen[batches, heads] |= np.cumsum(change)[:-1] > 0
    return seen


DISTRIBUTIONS: dict[str, Callable[[Case, Generators], Drawn]] = {
    "randn": _randn,
    "large": _large,
    "positive": _positive,
    "one_hot": _one_hot,
    "constant_v": _constant_v,
    "rising": _rising,
    "negative_lse": _negative_lse,
    "huge_negative": _huge_negative,
    "near_constant_v": _near_constant_v,
    "sign_flipped_v": _sign_flipped_v,
    "sign_flipped_dout": _sign_flipped_dout,
    "cancelling_dq": _cancelling_dq,
    "sink_key": _sink_key,
    "subnormal_v": _subnormal_v,
    "huge_unseen": _huge_unseen,
}
