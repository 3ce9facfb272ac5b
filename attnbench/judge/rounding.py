"""How far may a right backend be from the exact answer? The noise of rounding, per element, by Monte-Carlo.

The exact answer is computed again N_RUNS times with uniform noise where a contract allows rounding, in the
order of the FlashAttention algorithm:

    x -> x + (u |x| + eta) U(-1, 1)        u the dtype's half unit in the last place, eta fp16's underflow

FLASH  scores and statistics in float32; P, dS and the results are rounded to the dtype. The argument of exp
       is off by 2 u32 (|s - max| + 2) and by its float32 accumulation, P in the backward by
       2 u32 (|s| + |lse|); a float32 sum of L products by 2 u32 sqrt(L) sqrt(sum (x y)^2).
DENSE  every intermediate is rounded to the dtype as well: scores after each step, exp, its sum, P, dP, delta,
       dS.
FLASH_SPLITS  as FLASH, and the weight of each split of the keys is off by 2 u32 |lse|, common to its keys: it is
       exp of a difference of two LSE that float32 holds.

`sigma^2 = 1/2 (second moment of the element's noise) + 1/2 (its mean over the element's row)`, plus `u/2
|ref|`: sixteen runs leave an element's own moment uncertain by a third, the row's mean does not. Head dim,
length, magnitude, mask, softcap and bias enter by themselves; nothing here is tuned to a backend.

Cost: 16 runs over every pair would be 16 times the oracle, so noise is drawn for the chosen rows and columns
only. What columns need of all rows, the noise of delta and of the LSE, is taken from closed forms as the one
full pass goes by: Var(delta) = u^2/3 [sum_c (dO_c o_c)^2 + sum_j (P_j dP_j)^2] and the float32 terms. The
runs are float32 where the dtype's own u is far above float32's, on differences to values that were computed
in float64; uniform noise comes from a pool read at random places, since drawing it would cost more than
using it.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from attnbench.judge.scores import Block, Part, Problem
from attnbench.problem.scores import Softcap

N_RUNS = 16
PARTIALS = 16  # places of a sum where its partial sums are looked at
LARGEST_ARGUMENT = (
    60.0  # of exp in a run: DENSE scores of 5e5 are off by thousands; keeps float32 sums finite
)
U32 = 2.0**-24
UNITS = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
# Units of float32's range may flush subnormals to zero; fp16's are kept, down to the smallest.
UNDERFLOW = {"fp32": 2.0**-126, "bf16": 2.0**-126, "fp16": 2.0**-24}


@dataclass(frozen=True)
class Rounding:
    """How coarse a dtype and a contract allow each step to be; amplitudes of uniform noise, in the values'
    units.
    """

    dtype: str
    dense: bool
    splits: bool = False

    @property
    def u(self) -> float:
        return UNITS[self.dtype]

    @property
    def eta(self) -> float:
        return UNDERFLOW[self.dtype]

    @property
    def run_dtype(self) -> torch.dtype:
        """The precision of the noise runs themselves: finer than what they measure."""
        return torch.float64 if self.dtype == "fp32" else torch.float32

    def rounded(self, x: Tensor) -> Tensor:
        """One rounding to the dtype; an exact zero (a key that nobody sees) is no rounded number, and stays
        zero.
        """
        return self.u * x.abs() + self.eta * (x != 0)

    def flushed(self, p: Tensor, ds: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What of P and dS (of one shape) a flush to zero may take: all of a pair, of one sign from pair to pair.

        P goes below float32's smallest normal number, in a DENSE fp16 below fp16's smallest number, and takes its dS
        along; dS goes below float32's smallest normal number, before or after it is scaled (by 0 nothing is small).
        """
        lost = p < (self.eta if self.dense else UNDERFLOW["fp32"])
        small = ds.abs() * min(1.0, abs(scale) or 1.0) < UNDERFLOW["fp32"]
        return p * lost, ds * (lost | small)

    def scores(self, problem: Problem, part: Part, block: Block) -> Tensor:
        """S before the softmax: float32 accumulation over D; DENSE rounds q, k and S after each step."""
        q, k = problem.q(part), problem.k(part)
        spread = problem.by_key_head(q * q, (k * k).transpose(-1, -2)).sqrt_().mul_(abs(problem.scale))
        amplitude = 2 * U32 * math.sqrt(problem.case.head_dim) * spread
        if block.slope is not None:
            amplitude = amplitude + 2 * U32 * block.raw.abs()  # the argument of tanh
        if self.dense:
            steps = [block.raw, block.raw]  # the product, and the product scaled
            terms = problem.added(part)
            steps += [block.s.masked_fill(~block.allowed, 0.0)] * (1 + len(terms)) + terms
            squares = sum((self.u * step) ** 2 for step in steps)
            amplitude = torch.sqrt(amplitude**2 + squares + 2 * (self.u * spread) ** 2)
        return amplitude

    def split_weight(self, lse: Tensor, row_max: Tensor) -> Tensor:
        """The logarithm of a split's weight in the merge, from finite LSE and maxima [B, H, R]; 0 without splits."""
        return 2 * U32 * torch.maximum(lse.abs(), row_max.abs()) * self.splits

    def exp_argument(self, s_from_max: Tensor) -> Tensor:
        """What exp sees in the forward: s - max in float32 (DENSE: in the dtype)."""
        amplitude = 2 * U32 * (s_from_max + 2)
        return torch.sqrt(amplitude**2 + (self.u * s_from_max) ** 2) if self.dense else amplitude


class Uniform:
    """Uniform noise in (-1, 1) from a pool that is read at random places; the same from the same seed."""

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype, largest: int) -> None:
        size = 1 << max(20, math.ceil(math.log2(2 * largest)))
        self._pool = _pool(size, str(device), dtype)
        self._places = random.Random(seed)

    def __call__(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        start = self._places.randrange(self._pool.numel() - count + 1)
        return self._pool[start : start + count].view(shape)


@lru_cache(maxsize=2)
def _pool(size: int, device: str, dtype: torch.dtype) -> Tensor:
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(0))
    return drawn.to(device=device, dtype=dtype).mul_(2).sub_(1)


def largest_partial(problem: Problem, left: Tensor, right: Tensor) -> Tensor:
    """The largest partial sum of left [B, H, R, X] times right [B, Hkv, X, Y] in order or in reverse: [B, H,
    R, Y].

    Float32 adds to a partial sum with an error of that sum's size. Where terms of one sign come first and
    cancel later (V near 1, then near -1), it is far above the root of the sum of squares. Seen at 16 places.
    """
    total = low = high = torch.zeros((), dtype=left.dtype, device=left.device)
    step = -(-left.shape[-1] // PARTIALS)
    for some, others in zip(left.split(step, -1), right.split(step, -2), strict=True):
        total = total + problem.by_key_head(some, others)
        low, high = torch.minimum(low, total), torch.maximum(high, total)
    return either_way(total, low, high)


def either_way(total: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The largest partial sum, from the lowest and highest on the way (0 among them), added forwards or backwards."""
    return torch.maximum(torch.maximum(high, -low), torch.maximum(total - low, high - total))


def sum_noise(length: int | Tensor, squares: Tensor, partial: Tensor) -> Tensor:
    """The noise of a float32 sum of `length` products: 2 u32 sqrt(L) sqrt(sum of squares), where terms are of both
    signs; u32 sqrt(L) times the partial sums, which each addition rounds, where those are larger."""
    return U32 * length**0.5 * torch.maximum(2 * squares.sqrt(), partial)


def reach(s: Tensor, lse: Tensor, amplitude: Tensor) -> Tensor:
    """How far P may be from exact when each score is off by its amplitude [B, H, R, K], which may be thousands:
    P times the amplitude where that is small, and up to 1 where rounding decides which key wins the row.
    """
    most = torch.exp((s - lse[..., None] + 2 * amplitude).clamp_max(0.0))
    return most * amplitude.clamp_max(1.0)


def slope_noise(problem: Problem, block: Block, of_scores: Tensor, rounding: Rounding) -> Tensor:
    """The noise of softcap's derivative 1 - tanh^2, which cancels where tanh is near 1."""
    assert block.slope is not None
    assert isinstance(problem.softcap, Softcap)
    tanh_square = 1 - block.slope
    steps = rounding.u if rounding.dense else U32
    through = 2 * tanh_square.sqrt() * block.slope / problem.softcap.cap * of_scores
    return torch.sqrt((4 * steps * tanh_square) ** 2 + through**2)
