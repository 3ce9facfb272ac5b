"""The rounding model: how far each step of attention may be off under a dtype and a contract.

The noise of an element is measured by Monte-Carlo: the exact answer is computed again N_RUNS times with uniform noise
at each point where the contract allows rounding, in the order of the FlashAttention algorithm:

    x -> x + (u |x| + eta) U(-1, 1)        u the dtype's half unit in the last place, eta fp16's underflow

FLASH  scores and statistics in float32; P, dS and the results are rounded to the dtype. The argument of exp
       is off by 2 u32 (|s - max| + 2) and by its float32 accumulation, P in the backward by
       2 u32 (|s| + |lse|); a float32 sum of L products by 2 u32 sqrt(L) sqrt(sum (x y)^2).
DENSE  every intermediate is rounded to the dtype as well: scores after each step, exp, its sum, P, dP, delta,
       dS.
FLASH_SPLITS  as FLASH, and P in the forward may be taken from an LSE that float32 holds, as in the backward: the
       argument of exp is off by 2 u32 (|s| + |lse|), and the row as a whole by what the LSE is off, since nothing is
       divided by the sum of such weights; the weight of each split of the keys is off by 2 u32 |lse|, common to its
       keys: it is exp of a difference of two LSE.

`sigma^2 = 1/2 (second moment of the element's noise) + 1/2 (its mean over the element's row)`, plus `u/2
|ref|`: sixteen runs leave an element's own moment uncertain by a third, and the row's mean is steadier. Head dim,
length, magnitude, mask, softcap and bias enter through the computation; no constant is tuned to a backend.

Cost: 16 runs over every pair would cost 16 oracles, so noise is drawn for the chosen rows and columns only. Columns
need the noise of delta and of the LSE of every row: closed forms, computed during the one full pass, such as
Var(delta) = u^2/3 [sum_c (dO_c o_c)^2 + sum_j (P_j dP_j)^2] and the float32 terms. The runs are float32 if the dtype's
own u is far above float32's, on differences to float64 values. Uniform noise comes from a pool that is read at random
offsets: drawing it would cost more than using it.
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
PARTIALS = 16  # points of a sum at which its partial sum is taken
LARGEST_ARGUMENT = (
    60.0  # of exp in a run: DENSE scores of 5e5 are off by thousands; keeps float32 sums finite
)
U32 = 2.0**-24
UNITS = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
# Units of float32's range may flush subnormals to zero; fp16's are kept, down to the smallest.
UNDERFLOW = {"fp32": 2.0**-126, "bf16": 2.0**-126, "fp16": 2.0**-24}


@dataclass(frozen=True)
class Rounding:
    """How coarse a dtype and a contract allow each step of attention to be.

    A method per step gives the amplitude of its uniform noise, in the units of the value; the variance is a third of
    its square. Rows, columns and sums over all pairs take their noise from here and nowhere else.
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

    @property
    def roundings(self) -> int:
        """How often P and dq are rounded to the dtype: DENSE rounds exp and P, dq and the scaled dq."""
        return 2 if self.dense else 1

    @property
    def ds_roundings(self) -> int:
        """How often dS is rounded to the dtype: DENSE rounds dP - delta, the product with P, and the scaled product."""
        return 3 if self.dense else 1

    @property
    def dense_u(self) -> float:
        """The unit of intermediates that FLASH keeps in float32: 0 there."""
        return self.u if self.dense else 0.0

    def rounded(self, x: Tensor) -> Tensor:
        """One rounding to the dtype; an exact zero (a masked key) is not rounded and stays zero."""
        return self.u * x.abs() + self.eta * (x != 0)

    def scores(self, problem: Problem, part: Part, block: Block) -> Tensor:
        """S before the softmax [B, H, R, C]: float32 accumulation over D; DENSE rounds q, k and S after each step."""
        q, k = problem.q(part), problem.k(part)
        spread = problem.by_key_head(q * q, (k * k).transpose(-1, -2)).sqrt_().mul_(abs(problem.scale))
        amplitude = accumulated(problem.case.head_dim, spread)
        if block.slope is not None:
            amplitude = amplitude + 2 * U32 * block.raw.abs()  # the argument of tanh
        if self.dense:
            steps = [block.raw, block.raw]  # the product, and the product scaled
            terms = problem.added(part)
            steps += [block.s.masked_fill(~block.allowed, 0.0)] * (1 + len(terms)) + terms
            squares = sum((self.u * step) ** 2 for step in steps)
            amplitude = torch.sqrt(amplitude**2 + squares + 2 * (self.u * spread) ** 2)
        return amplitude

    def exp_argument(self, from_max: Tensor) -> Tensor:
        """What exp sees in the forward: s - max in float32 (DENSE: in the dtype)."""
        amplitude = 2 * U32 * (from_max + 2)
        return torch.sqrt(amplitude**2 + (self.u * from_max) ** 2) if self.dense else amplitude

    def forward_argument(self, of_scores: Tensor, from_max: Tensor) -> Tensor:
        """The argument of exp in the forward: the scores' noise and the subtraction's."""
        return torch.sqrt(of_scores**2 + self.exp_argument(from_max) ** 2)

    def backward_argument(self, of_scores: Tensor, block: Block, lse: Tensor) -> Tensor:
        """The argument of exp where the backward computes P again from the finite LSE [B, H, R]."""
        of_difference = 2 * U32 * (block.s.abs().masked_fill(~block.allowed, 0.0) + lse.abs()[..., None])
        return torch.sqrt(of_scores**2 + of_difference**2)

    def exp_underflow(self, row_max: Tensor, lse: Tensor) -> Tensor:
        """Underflow of exp, in units of P [B, H, R]: exp is rounded in units of the row's maximum."""
        return self.eta * torch.exp(row_max - lse).clamp_max(1.0)

    def weights(self, p: Tensor, underflow: Tensor | float) -> Tensor:
        """One rounding of exp or P; it happens `roundings` times."""
        return p * self.u + underflow

    def row_sum(self, k_len: int, p: Tensor) -> Tensor:
        """The float32 sum of a row's weights, [B, H, R]."""
        return accumulated(k_len, p.square().sum(-1).sqrt())

    def lse(self, lse: Tensor, row_max: Tensor) -> Tensor:
        """The LSE, a float32 sum of the maximum and a logarithm; both finite [B, H, R]."""
        return 2 * U32 * (lse.abs() + row_max.abs())

    def split_weight(self, lse: Tensor, row_max: Tensor) -> Tensor:
        """The logarithm of a split's weight in the merge, from finite LSE and maxima [B, H, R]; 0 without splits."""
        return 2 * U32 * torch.maximum(lse.abs(), row_max.abs()) * self.splits

    def dp(self, v_dim: int, spread: Tensor, dp: Tensor) -> Tensor:
        """dP = dO V^T: float32 accumulation over Dv of products whose root of squares is `spread`; DENSE rounds dP."""
        amplitude = accumulated(v_dim, spread)
        return torch.sqrt(amplitude**2 + (self.u * dp) ** 2) if self.dense else amplitude

    def masked_dp(self, problem: Problem, part: Part, block: Block, dp: Tensor) -> Tensor:
        """dP [B, H, R, C] as `dp`, with its underflow, and 0 where masked."""
        squares = problem.by_key_head(problem.dout(part) ** 2, (problem.v(part) ** 2).transpose(-1, -2))
        amplitude = self.dp(problem.case.v_dim, squares.sqrt(), dp) + (self.eta if self.dense else 0.0)
        return amplitude.masked_fill(~block.allowed, 0.0)

    def delta(self, v_dim: int, dout_out: Tensor, p_dp: Tensor, delta: Tensor) -> Tensor:
        """delta = sum of dO * O, from the sums of squares of dO * O and of P * dP [B, H, R].

        DENSE may take it as the sum of P * dP, each product rounded, and rounds the sum.
        """
        amplitude = accumulated(v_dim, dout_out.sqrt())
        return torch.sqrt(amplitude**2 + self.dense_u**2 * (p_dp + delta**2)) if self.dense else amplitude

    def ds_underflow(self, scale: float) -> float:
        """Underflow of dS, before or after it is scaled."""
        return self.eta * max(1.0, 1.0 / abs(scale)) if scale else self.eta

    def ds(self, ds: Tensor, block: Block, scale: float) -> Tensor:
        """dS [B, H, R, C], `ds_roundings` times."""
        return math.sqrt(self.ds_roundings) * self.u * ds.abs() + self.ds_underflow(scale) * block.allowed

    def slope(self, problem: Problem, block: Block, of_scores: Tensor) -> Tensor:
        """The softcap's derivative 1 - tanh^2, which cancels where tanh is near 1."""
        assert block.slope is not None
        assert isinstance(problem.softcap, Softcap)
        tanh_square = 1 - block.slope
        steps = self.u if self.dense else U32
        through = 2 * tanh_square.sqrt() * block.slope / problem.softcap.cap * of_scores
        return torch.sqrt((4 * steps * tanh_square) ** 2 + through**2)

    def flushed(self, p: Tensor, ds: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """What a flush to zero may take of P and dS (same shape): all of a pair, with one sign from pair to pair.

        P goes below float32's smallest normal number, in a DENSE fp16 below fp16's smallest number, and takes its dS
        along; dS goes below float32's smallest normal number, before or after it is scaled (by 0 nothing is small).
        """
        lost = p < (self.eta if self.dense else UNDERFLOW["fp32"])
        small = ds.abs() * min(1.0, abs(scale) or 1.0) < UNDERFLOW["fp32"]
        return p * lost, ds * (lost | small)


def accumulated(length: int, spread: Tensor) -> Tensor:
    """A float32 sum of `length` products, the root of their squares' sum being `spread`."""
    return 2 * U32 * math.sqrt(length) * spread


def finite(x: Tensor) -> Tensor:
    """LSE or row maxima with 0 for the -inf of a row without a key."""
    return x.masked_fill(x == -math.inf, 0.0)


def distance_from_max(block: Block, row_max: Tensor) -> Tensor:
    """|s - max| [B, H, R, C] for finite row maxima [B, H, R], 0 where masked."""
    return (block.s - row_max[..., None]).abs().masked_fill_(~block.allowed, 0.0)


class Uniform:
    """Uniform noise in (-1, 1) from a pool that is read at random offsets; reproducible from the seed."""

    def __init__(self, seed: int, device: torch.device, dtype: torch.dtype, largest: int) -> None:
        size = 1 << max(20, math.ceil(math.log2(2 * largest)))
        self._pool = _pool(size, str(device), dtype)
        self._offsets = random.Random(seed)

    def __call__(self, *shape: int) -> Tensor:
        count = math.prod(shape)
        start = self._offsets.randrange(self._pool.numel() - count + 1)
        return self._pool[start : start + count].view(shape)


@lru_cache(maxsize=2)
def _pool(size: int, device: str, dtype: torch.dtype) -> Tensor:
    drawn = torch.rand(size, generator=torch.Generator().manual_seed(0))
    return drawn.to(device=device, dtype=dtype).mul_(2).sub_(1)


def largest_partial(problem: Problem, left: Tensor, right: Tensor) -> Tensor:
    """The largest partial sum of left [B, H, R, X] times right [B, Hkv, X, Y], in order or reversed: [B, H, R, Y].

    Each float32 addition errs in proportion to the partial sum. If terms of one sign come first and cancel later (V
    near 1, then near -1), it is far above the root of the sum of squares. Sampled at 16 points.
    """
    total = low = high = torch.zeros((), dtype=left.dtype, device=left.device)
    step = -(-left.shape[-1] // PARTIALS)
    for some, others in zip(left.split(step, -1), right.split(step, -2), strict=True):
        total = total + problem.by_key_head(some, others)
        low, high = torch.minimum(low, total), torch.maximum(high, total)
    return either_way(total, low, high)


def either_way(total: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """The largest partial sum, added forwards or backwards, from the lowest and highest of them (0 included)."""
    return torch.maximum(torch.maximum(high, -low), torch.maximum(total - low, high - total))


def sum_noise(length: int | Tensor, squares: Tensor, partial: Tensor) -> Tensor:
    """The noise of a float32 sum of `length` products: 2 u32 sqrt(L) sqrt(sum of squares) for terms of both signs,
    or u32 sqrt(L) times the largest partial sum, which each addition rounds, if that is larger."""
    return U32 * length**0.5 * torch.maximum(2 * squares.sqrt(), partial)


def reach(s: Tensor, lse: Tensor, amplitude: Tensor) -> Tensor:
    """How far P may be from exact if each score is off by its amplitude [B, H, R, K], which may be thousands.

    P times a small amplitude; up to 1 if rounding decides which key wins the row.
    """
    most = torch.exp((s - lse[..., None] + 2 * amplitude).clamp_max(0.0))
    return most * amplitude.clamp_max(1.0)
