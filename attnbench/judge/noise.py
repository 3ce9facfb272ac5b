"""How far may a right backend be from the exact answer? The noise of rounding, per element, by Monte-Carlo.

The exact answer is computed again N_RUNS times with uniform noise where a contract allows rounding, in the
order of the FlashAttention algorithm:

    x -> x + (u |x| + eta) U(-1, 1)        u the dtype's half unit in the last place, eta fp16's underflow

FLASH  scores and statistics in float32; P, dS and the results are rounded to the dtype. The argument of exp
       is off by 2 u32 (|s - max| + 2) and by its float32 accumulation, P in the backward by
       2 u32 (|s| + |lse|); a float32 sum of L products by 2 u32 sqrt(L) sqrt(sum (x y)^2).
DENSE  every intermediate is rounded to the dtype as well: scores after each step, exp, its sum, P, dP, delta,
       dS.

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
from typing import Literal

import torch
from torch import Tensor

from attnbench.judge.oracle import (
    Block,
    Part,
    Problem,
    Rows,
    Statistics,
    Window,
    add_reduced,
    all_rows,
    empty_statistics,
    per_entry,
    probabilities,
    relative_index,
    window,
)
from attnbench.problem.scores import Bias, RelativeBias, Softcap

N_RUNS = 16
PARTIALS = 16  # places of a sum where its partial sums are looked at
LARGEST_ARGUMENT = (
    60.0  # of exp in a run: DENSE scores of 5e5 are off by thousands; keeps float32 sums finite
)
U32 = 2.0**-24
UNITS = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}
UNDERFLOW = {
    "fp32": 2.0**-126,
    "bf16": 2.0**-126,
    "fp16": 2.0**-24,
}  # fp32 units may flush subnormals to zero

Contract = Literal["flash", "dense"]


@dataclass(frozen=True)
class Rounding:
    """How coarse a dtype and a contract allow each step to be; amplitudes of uniform noise, in the values'
    units.
    """

    dtype: str
    dense: bool

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


@dataclass(frozen=True)
class RowNoise:
    """Second moments of the noise of some rows: out [B, H, R, Dv], lse [B, H, R], dq [B, H, R, D]; ds of S
    [B, H, R, K].

    `ds_runs` are the differences of each run, [B, H, n, R, K]: gradients of a bias sum them.
    """

    out: Tensor
    lse: Tensor
    dq: Tensor | None = None
    ds_runs: Tensor | None = None


def _wide(x: Tensor, dtype: torch.dtype) -> Tensor:
    return x.to(dtype)[:, :, None]  # [B, H, 1, R, ...]: one for all runs


def _by_key_head(problem: Problem, runs: Tensor, right: Tensor) -> Tensor:
    """runs [B, H, n, R, X] times right [B, Hkv, X, Y]: [B, H, n, R, Y]."""
    b, h, n, r, x = runs.shape
    return problem.by_key_head(runs.reshape(b, h, n * r, x), right).reshape(b, h, n, r, right.shape[-1])


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


def sum_noise(length: int, squares: Tensor, partial: Tensor) -> Tensor:
    """The noise of a float32 sum of `length` products: 2 u32 sqrt(L) sqrt(sum of squares), where terms are of both
    signs; u32 sqrt(L) times the partial sums, which each addition rounds, where those are larger."""
    return U32 * math.sqrt(length) * torch.maximum(2 * squares.sqrt(), partial)


def slope_noise(problem: Problem, block: Block, of_scores: Tensor, rounding: Rounding) -> Tensor:
    """The noise of softcap's derivative 1 - tanh^2, which cancels where tanh is near 1."""
    assert block.slope is not None
    assert isinstance(problem.softcap, Softcap)
    tanh_square = 1 - block.slope
    steps = rounding.u if rounding.dense else U32
    through = 2 * tanh_square.sqrt() * block.slope / problem.softcap.cap * of_scores
    return torch.sqrt((4 * steps * tanh_square) ** 2 + through**2)


def _second_moment(runs: Tensor) -> Tensor:
    return (runs.double() ** 2).mean(2)


def row_noise(problem: Problem, rows: Rows, rounding: Rounding, uniform: Uniform) -> RowNoise:
    """The noise of out, lse and dq of some whole rows."""
    part, block, work = rows.part, rows.block, rounding.run_dtype
    u, eta, k_len = rounding.u, rounding.eta, problem.case.k_len
    b, h, r, k = block.s.shape
    n = N_RUNS
    u_pair = lambda: uniform(b, h, n, r, k)  # noqa: E731 - one draw a pair and run
    finite_max = rows.row_max.masked_fill(rows.row_max == -math.inf, 0.0)
    finite_lse = rows.lse.masked_fill(rows.lse == -math.inf, 0.0)
    from_max = (block.s - finite_max[..., None]).abs().masked_fill_(~block.allowed, 0.0)
    of_scores = rounding.scores(problem, part, block)
    of_argument = torch.sqrt(of_scores**2 + rounding.exp_argument(from_max) ** 2)
    v64 = problem.v(part)

    # Forward. exp in units of the final LSE, so that its sum (with the sink) is 1 without noise.
    argument = _wide(block.s - finite_lse[..., None], work)
    noisy = u_pair() * _wide(of_argument, work) + argument
    p = torch.exp(noisy.clamp_max_(LARGEST_ARGUMENT))  # [B, H, n, R, K]
    sum_spread = 2 * U32 * math.sqrt(k_len) * rows.p.square().sum(-1).sqrt()
    total = p.sum(-1) + _wide(rows.p_sink, work) + uniform(b, h, n, r) * _wide(sum_spread, work)
    if rounding.dense:
        total = total + uniform(b, h, n, r) * u
    total = total.clamp_min(torch.finfo(work).tiny)
    # exp is rounded in units of the maximum, where fp16's underflow is the same for every row.
    underflow = eta * torch.exp(finite_max - finite_lse).clamp_max(1.0)
    roundings = 2.0 if rounding.dense else 1.0  # DENSE rounds exp and P
    of_p = p * u + _wide(underflow[..., None] * block.allowed, work)
    weights = p + u_pair() * of_p * math.sqrt(roundings)
    out = _by_key_head(problem, weights, v64.to(work)) / total[..., None]
    sum_out = sum_noise(k_len, problem.by_key_head(rows.p**2, v64**2), largest_partial(problem, rows.p, v64))
    of_out = torch.sqrt(sum_out**2 + rounding.rounded(rows.out) ** 2)
    empty = rows.lse == -math.inf
    d_out = out - _wide(rows.out, work) + uniform(b, h, n, r, out.shape[-1]) * _wide(of_out, work)
    d_out = d_out.masked_fill(empty[:, :, None, :, None], 0.0)
    d_lse = torch.log(total) + uniform(b, h, n, r) * _wide(
        2 * U32 * (finite_lse.abs() + finite_max.abs()), work
    )
    d_lse = d_lse.masked_fill(empty[:, :, None, :], 0.0)
    if rows.dp is None or rows.delta is None or rows.ds is None or rows.dq is None:
        return RowNoise(_second_moment(d_out), _second_moment(d_lse))

    dout64, k64 = problem.dout(part), problem.k(part)
    if rounding.dense:
        p_again = weights / total[..., None]  # the forward's P was kept
    else:
        # P again from the LSE.
        of_again = 2 * U32 * (block.s.abs().masked_fill(~block.allowed, 0.0) + finite_lse.abs()[..., None])
        of_again = torch.sqrt(of_scores**2 + of_again**2)
        noisy = u_pair() * _wide(of_again, work) + argument - d_lse[..., None]
        p_again = torch.exp(noisy.clamp_max_(LARGEST_ARGUMENT))
    sum_dp = (
        2
        * U32
        * math.sqrt(problem.case.v_dim)
        * problem.by_key_head(dout64**2, (v64**2).transpose(-1, -2)).sqrt()
    )
    dp64 = rows.dp.masked_fill(~block.allowed, 0.0)
    of_dp = torch.sqrt(sum_dp**2 + (u * dp64) ** 2) + eta if rounding.dense else sum_dp
    of_dp = of_dp.masked_fill(~block.allowed, 0.0)
    of_delta = 2 * U32 * math.sqrt(problem.case.v_dim) * ((dout64 * rows.out) ** 2).sum(-1).sqrt()
    if rounding.dense:
        products = u * (rows.p * dp64).square().sum(-1).sqrt()
        of_delta = torch.sqrt(of_delta**2 + products**2 + (u * rows.delta) ** 2)
    d_delta = (_wide(dout64, work) * d_out).sum(-1) + uniform(b, h, n, r) * _wide(of_delta, work)
    centred = _wide(dp64 - rows.delta[..., None], work)
    ds = p_again * (centred + u_pair() * _wide(of_dp, work) - d_delta[..., None])
    ds_eta = eta * max(1.0, 1.0 / abs(problem.scale)) if problem.scale else eta
    of_ds = math.sqrt(3.0 if rounding.dense else 1.0) * u * rows.ds.abs() + ds_eta * block.allowed
    d_ds = ds - _wide(rows.ds, work) + u_pair() * _wide(of_ds, work)
    through_cap, clean = d_ds, rows.ds
    if block.slope is not None:
        of_slope = _wide(slope_noise(problem, block, of_scores, rounding), work)
        slope = _wide(block.slope, work)
        through_cap = (d_ds + _wide(rows.ds, work)) * (slope + u_pair() * of_slope) - _wide(
            rows.ds, work
        ) * slope
        clean = rows.ds * block.slope
    squares = problem.by_key_head(clean**2, k64**2)
    sum_dq = sum_noise(k_len, squares, largest_partial(problem, clean, k64)) * abs(problem.scale)
    of_dq = torch.sqrt(sum_dq**2 + (roundings * rounding.rounded(rows.dq)) ** 2)
    d_dq = _by_key_head(problem, through_cap, k64.to(work)) * problem.scale
    d_dq = d_dq + uniform(b, h, n, r, d_dq.shape[-1]) * _wide(of_dq, work)
    d_dq = d_dq.masked_fill(empty[:, :, None, :, None], 0.0)
    return RowNoise(_second_moment(d_out), _second_moment(d_lse), _second_moment(d_dq), d_ds)


@dataclass(frozen=True)
class FullPass:
    """What the one pass over all rows leaves: statistics, and the variance of the noise of LSE and delta [B,
    H, Q].

    `values` and `variances` hold the gradients that sum over every pair (dtable, dsink, a bias without rows
    and columns), in the shapes of their tensors.
    """

    known: Statistics
    var_lse: Tensor
    var_delta: Tensor
    values: dict[str, Tensor]
    variances: dict[str, Tensor]


def row_variances(problem: Problem, rows: Rows, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Closed forms of Var(lse) and Var(delta) of whole rows, [B, H, R] each."""
    if rows.dp is None or rows.delta is None:
        return torch.zeros_like(rows.lse), torch.zeros_like(rows.lse)
    case, part = problem.case, rows.part
    finite_max = rows.row_max.masked_fill(rows.row_max == -math.inf, 0.0)
    finite_lse = rows.lse.masked_fill(rows.lse == -math.inf, 0.0)
    dout, q, k = problem.dout(part), problem.q(part), problem.k(part)
    # The float32 noise of a score, at the row's level: sum_d q_d^2 k_d^2 in the mean over P.
    spread = (q * q * problem.by_key_head(rows.p, k * k)).sum(-1).sqrt() * abs(problem.scale)
    argument = 2 * U32 * (math.sqrt(case.head_dim) * spread + 2 + math.log(case.k_len))
    if rounding.dense:
        argument = argument + rounding.u * (2 * finite_max.abs() + math.log(case.k_len) + 2 * spread)
        argument = argument.clamp_max(1.0)  # P stays between 0 and 1, however far scores of 5e5 are off
    p_square = rows.p.square().sum(-1)
    weighted = (rows.p * rows.dp).square().sum(-1)
    var_lse = (argument**2 * p_square + 4 * U32**2 * (finite_lse.abs() + finite_max.abs()) ** 2) / 3
    var_lse = var_lse + (4 * U32**2 * case.k_len * p_square + (rounding.u**2 if rounding.dense else 0.0)) / 3
    u = rounding.u
    o_square = ((dout * rows.out) ** 2).sum(-1)
    roundings = 2 if rounding.dense else 1
    var_delta = (u**2 * o_square + rounding.eta**2 * (dout**2).sum(-1)) / 3
    var_delta = (
        var_delta + (roundings * u**2 * weighted + argument**2 * (weighted + rows.delta**2 * p_square)) / 3
    )
    if rounding.eta:
        underflow = rounding.eta * torch.exp(finite_max - finite_lse).clamp_max(1.0)
        var_delta = var_delta + underflow**2 * (rows.dp.square() * rows.block.allowed).sum(-1) / 3
    sums = 4 * U32**2 * (case.v_dim * o_square + case.k_len * weighted)
    var_delta = var_delta + sums / 3
    if rounding.dense:
        var_delta = var_delta + (u**2 * (weighted + 2 * rows.delta**2)) / 3
    return var_lse, var_delta


class _Sums:
    """Gradients that sum over every pair, and the variance of their noise, gathered as rows go by."""

    def __init__(self, problem: Problem, rounding: Rounding) -> None:
        self.problem, self.rounding = problem, rounding
        shapes = {
            s.gradient: s.tensor.shape for s in problem.inputs.scores if s.gradient and s.tensor is not None
        }
        if "dbias" in shapes and shapes["dbias"][2:] != (1, 1):
            del shapes["dbias"]  # judged at the chosen rows or columns
        zeros = lambda shape: torch.zeros(shape, dtype=torch.float64, device=problem.device)  # noqa: E731
        self.values = {name: zeros(shape) for name, shape in shapes.items()}
        self.variances = {name: zeros(shape) for name, shape in shapes.items()}

    def add(self, rows: Rows, var_lse: Tensor, var_delta: Tensor) -> None:
        if not self.values or rows.ds is None or rows.delta is None:
            return
        problem, part, u = self.problem, rows.part, self.rounding.u
        heads = problem.heads(part.kv_heads)
        steps = 3.0 if self.rounding.dense else 1.0
        # dS is off by its own rounding, and by float32's in P and dP; in a row all its P share delta's noise.
        pair = (steps * u**2 + 64 * U32**2) * rows.ds**2 / 3 + self.rounding.eta**2 * rows.block.allowed / 3
        if rows.dp is not None:
            level = (self.rounding.u**2 if self.rounding.dense else 0.0) + 4 * U32**2 * problem.case.v_dim
            pair = pair + level * (rows.p * rows.dp) ** 2 / 3
        if "dtable" in self.values and isinstance(problem.relative, RelativeBias):
            case = problem.case
            index = relative_index(problem.relative.rule, part.rows, part.columns, case.q_len, case.k_len)
            entries = problem.relative.entries
            shared = per_entry(rows.p, index, entries) ** 2 * var_delta[..., None]
            by_entry = per_entry(rows.ds, index, entries)
            shared = shared + by_entry**2 * var_lse[..., None]
            self.values["dtable"][heads] += by_entry.sum((0, 2))
            self.variances["dtable"][heads] += (per_entry(pair, index, entries) + shared).sum((0, 2))
        if "dsink" in self.values:
            sink = rows.p_sink
            self.values["dsink"][heads] -= (sink * rows.delta).sum((0, 2))
            rounded = (steps * u * sink * rows.delta) ** 2 / 3
            self.variances["dsink"][heads] += (sink**2 * (var_delta + rows.delta**2 * var_lse) + rounded).sum(
                (0, 2)
            )
        if "dbias" in self.values:
            where = (part.batches, heads, part.rows, part.columns)
            add_reduced(self.values["dbias"], rows.ds, where)
            keys = rows.p.sum(-1, keepdim=True)
            common = keys**2 * var_delta[..., None] + rows.ds.sum(-1, keepdim=True) ** 2 * var_lse[..., None]
            first = part.columns[:1]
            add_reduced(self.variances["dbias"], pair.sum(-1, keepdim=True) + common, (*where[:3], first))


def full_pass(problem: Problem, batches: Tensor, kv_heads: Tensor, rounding: Rounding) -> FullPass:
    """Pass once over every row of these heads: LSE and delta, their noise, and the sums over every pair."""
    known = empty_statistics(problem, batches, kv_heads)
    var_lse, var_delta = torch.empty_like(known.lse), torch.empty_like(known.lse)
    sums = _Sums(problem, rounding)
    for at, rows in all_rows(problem, batches, kv_heads):
        known.lse[at] = rows.lse
        if rows.delta is not None:
            known.delta[at] = rows.delta
        var_lse[at], var_delta[at] = row_variances(problem, rows, rounding)
        sums.add(rows, var_lse[at], var_delta[at])
    return FullPass(known, var_lse, var_delta, sums.values, sums.variances)


@dataclass(frozen=True)
class ColumnAnswer:
    """Gradients of some columns and the second moments of their noise.

    dk, var_dk [B, Hkv, C, D]; dv, var_dv [B, Hkv, C, Dv]; ds, var_ds [B|1, H|1, 1, C], the gradient of a
    bias that has no rows, or None.
    """

    dk: Tensor
    dv: Tensor
    var_dk: Tensor
    var_dv: Tensor
    ds: Tensor | None = None
    var_ds: Tensor | None = None


def column_answer(
    problem: Problem, columns: Tensor, full: FullPass, rounding: Rounding, uniform: Uniform, at_once: int
) -> ColumnAnswer:
    """dk and dv of some columns of the heads of the full pass, and their noise."""
    case, n = problem.case, N_RUNS
    batches, kv_heads = full.known.batches, full.known.kv_heads
    part = Part(batches, kv_heads, problem.whole().rows, columns)
    shape = (len(batches), len(kv_heads) * case.group)
    zeros = lambda *tail: torch.zeros(*shape, *tail, dtype=torch.float64, device=problem.device)  # noqa: E731
    c = len(columns)
    dk, dv = zeros(c, case.head_dim), zeros(c, case.v_dim)  # by query head until the end
    square_dk, square_dv = torch.zeros_like(dk), torch.zeros_like(dv)  # sums of squares of the products
    range_dk = torch.zeros_like(dk), torch.zeros_like(dk)  # lowest and highest partial sums
    range_dv = torch.zeros_like(dv), torch.zeros_like(dv)
    work = rounding.run_dtype  # differences to the exact values: float32 holds their sums
    run_dk, run_dv = zeros(n * c, case.head_dim).to(work), zeros(n * c, case.v_dim).to(work)
    bias = problem.bias.tensor if isinstance(problem.bias, Bias) else None
    of_bias = bias is not None and bias.shape[2] == 1 and bias.shape[3] > 1
    ds_sum, ds_run = (zeros(1, c), zeros(n, c)) if of_bias else (None, None)
    for piece in problem.pieces(part, max(1, at_once // n)):
        at = window(problem, part, piece)
        here = at[:2]
        noise = _column_runs(problem, piece, full, at, rounding, uniform)
        b, h, r, _ = noise.p.shape
        q, dout = problem.q(piece), problem.dout(piece)
        for x, (low, high), left, right in ((dk, range_dk, noise.clean, q), (dv, range_dv, noise.p, dout)):
            step = -(-r // PARTIALS)
            for some in (slice(first, first + step) for first in range(0, r, step)):
                x[here] += torch.matmul(left[:, :, some].transpose(-1, -2), right[:, :, some])
                low[here] = torch.minimum(low[here], x[here])
                high[here] = torch.maximum(high[here], x[here])
        square_dk[here] += torch.matmul(noise.clean.square().transpose(-1, -2), q * q)
        square_dv[here] += torch.matmul(noise.p.square().transpose(-1, -2), dout * dout)
        run_dk[here] += torch.matmul(noise.run_clean.reshape(b, h, r, n * c).transpose(-1, -2), q.to(work))
        run_dv[here] += torch.matmul(noise.run_p.reshape(b, h, r, n * c).transpose(-1, -2), dout.to(work))
        if ds_sum is not None and ds_run is not None:
            ds_sum[here] += noise.ds.sum(2, keepdim=True)
            ds_run[here] += noise.run_ds.sum(2)
    dk, var_dk = _grouped(
        problem, rounding, _Summed(dk, square_dk, either_way(dk, *range_dk), run_dk), problem.scale
    )
    dv, var_dv = _grouped(problem, rounding, _Summed(dv, square_dv, either_way(dv, *range_dv), run_dv), 1.0)
    if ds_sum is None or ds_run is None or bias is None:
        return ColumnAnswer(dk, dv, var_dk, var_dv)
    over = tuple(dim for dim in (0, 1) if bias.shape[dim] == 1)
    value = ds_sum.sum(over, keepdim=True) if over else ds_sum
    runs = ds_run.sum(over, keepdim=True) if over else ds_run
    variance = runs.square().mean(2, keepdim=True) + rounding.rounded(value) ** 2 / 3
    return ColumnAnswer(dk, dv, var_dk, var_dv, value, variance)


@dataclass(frozen=True)
class _Summed:
    # A gradient of columns by query head [B, H, C, D]: exact, its sums of squares, its largest partial sums,
    # and
    # the differences of the runs [B, H, n * C, D].
    exact: Tensor
    squares: Tensor
    partial: Tensor
    runs: Tensor


def _grouped(problem: Problem, rounding: Rounding, x: _Summed, scale: float) -> tuple[Tensor, Tensor]:
    """The gradient of key heads [B, Hkv, C, D], summed over the query heads of each, and its noise's
    variance.
    """
    case = problem.case
    b, h, c, d = x.exact.shape
    group = (h // case.group, case.group)
    exact = (x.exact * scale).unflatten(1, group)
    total = exact.sum(2)
    runs = x.runs.unflatten(1, group).sum(2) if case.group > 1 else x.runs
    # Doubles before the square: differences of 1e-30 have none in float32.
    second = (runs.reshape(b, group[0], N_RUNS, c, d).double() * scale).square_().mean(2)
    rounded = rounding.rounded(total) ** 2
    # A backend may repeat keys over a group: each head's gradient is then rounded before the sum (FA2 does
    # so).
    if case.group > 1:
        rounded = rounded + (rounding.rounded(exact) ** 2).sum(2)
    sums = sum_noise(case.q_len, x.squares, x.partial) * abs(scale)
    return total, second + (rounded + (sums**2).unflatten(1, group).sum(2)) / 3


@dataclass(frozen=True)
class _ColumnRuns:
    # Exact p, ds and ds through the softcap [B, H, R, C], and the differences of each run to them [B, H, R,
    # n, C].
    p: Tensor
    ds: Tensor
    clean: Tensor
    run_p: Tensor
    run_ds: Tensor
    run_clean: Tensor


def _runs(x: Tensor, rounding: Rounding) -> Tensor:
    return x.to(rounding.run_dtype).unsqueeze(3)  # [B, H, R, 1, ...]


def _column_runs(
    problem: Problem, piece: Part, full: FullPass, at: Window, rounding: Rounding, uniform: Uniform
) -> _ColumnRuns:
    u, eta, n = rounding.u, rounding.eta, N_RUNS
    block = problem.block(piece)
    lse, delta = full.known.lse[at], full.known.delta[at]
    finite_lse = lse.masked_fill(lse == -math.inf, 0.0)
    p = probabilities(block.s, lse)
    dout, v = problem.dout(piece), problem.v(piece)
    dp = problem.by_key_head(dout, v.transpose(-1, -2)).masked_fill(~block.allowed, 0.0)
    ds = p * (dp - delta[..., None])
    b, h, r, c = p.shape
    u_pair = lambda: uniform(b, h, r, n, c)  # noqa: E731 - one draw a pair and run
    of_scores = rounding.scores(problem, piece, block)
    of_again = 2 * U32 * (block.s.abs().masked_fill(~block.allowed, 0.0) + finite_lse.abs()[..., None])
    of_again = torch.sqrt(of_scores**2 + of_again**2 + (2 * u**2 if rounding.dense else 0.0))
    d_lse = uniform(b, h, r, n) * _runs((3 * full.var_lse[at]).sqrt(), rounding)
    argument = _runs(block.s - finite_lse[..., None], rounding)
    noisy = u_pair() * _runs(of_again, rounding) + argument - d_lse[..., None]
    # DENSE keeps the forward's P, which is at most 1.
    p_again = torch.exp(noisy.clamp_max_(0.0 if rounding.dense else LARGEST_ARGUMENT))
    of_p = math.sqrt(2.0 if rounding.dense else 1.0) * (u * p + eta * block.allowed)
    run_p = p_again - _runs(p, rounding) + u_pair() * _runs(of_p, rounding)
    sum_dp = (
        2
        * U32
        * math.sqrt(problem.case.v_dim)
        * problem.by_key_head(dout**2, (v**2).transpose(-1, -2)).sqrt()
    )
    of_dp = torch.sqrt(sum_dp**2 + (u * dp) ** 2) + eta if rounding.dense else sum_dp
    of_dp = of_dp.masked_fill(~block.allowed, 0.0)
    d_delta = uniform(b, h, r, n) * _runs((3 * full.var_delta[at]).sqrt(), rounding)
    centred = _runs(dp - delta[..., None], rounding)
    ds_eta = eta * max(1.0, 1.0 / abs(problem.scale)) if problem.scale else eta
    of_ds = math.sqrt(3.0 if rounding.dense else 1.0) * u * ds.abs() + ds_eta * block.allowed
    run_ds = p_again * (centred + u_pair() * _runs(of_dp, rounding) - d_delta[..., None])
    run_ds = run_ds - _runs(ds, rounding) + u_pair() * _runs(of_ds, rounding)
    if block.slope is None:
        return _ColumnRuns(p, ds, ds, run_p, run_ds, run_ds)
    of_slope = _runs(slope_noise(problem, block, of_scores, rounding), rounding)
    slope, wide = _runs(block.slope, rounding), _runs(ds, rounding)
    run_clean = (run_ds + wide) * (slope + u_pair() * of_slope) - wide * slope
    return _ColumnRuns(p, ds, ds * block.slope, run_p, run_ds, run_clean)
