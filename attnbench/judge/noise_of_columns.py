"""The noise of dk and dv of chosen keys, by Monte-Carlo runs over every query, from the full pass's LSE and delta."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.judge.noise_of_sums import FullPass
from attnbench.judge.oracle import Slices, probabilities, slices_of
from attnbench.judge.rounding import (
    LARGEST_ARGUMENT,
    N_RUNS,
    PARTIALS,
    Rounding,
    Uniform,
    distance_from_max,
    either_way,
    finite,
    sum_noise,
)
from attnbench.judge.scores import Part, Problem
from attnbench.problem.scores import Bias


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
    batches, kv_heads = full.of_rows.batches, full.of_rows.kv_heads
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
        at = slices_of(problem, part, piece)
        here = at[:2]
        noise = _column_runs(problem, piece, full, at, rounding, uniform)
        b, h, r, _ = noise.p.shape
        q, dout = problem.q(piece), problem.dout(piece)
        for x, (low, high), left, right in ((dk, range_dk, noise.clean, q), (dv, range_dv, noise.p, dout)):
            step = -(-r // (PARTIALS * problem.enlarged))
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
    # A gradient of columns by query head [B, H, C, D]: exact, its sums of squares, its largest partial sums, and the
    # differences of the runs [B, H, n * C, D].
    exact: Tensor
    squares: Tensor
    partial: Tensor
    runs: Tensor


def _grouped(problem: Problem, rounding: Rounding, x: _Summed, scale: float) -> tuple[Tensor, Tensor]:
    """The gradient of key heads [B, Hkv, C, D], summed over their query heads, and the variance of its noise."""
    case = problem.case
    b, h, c, d = x.exact.shape
    group = (h // case.group, case.group)
    exact = (x.exact * scale).unflatten(1, group)
    total = exact.sum(2)
    runs = x.runs.unflatten(1, group).sum(2) if case.group > 1 else x.runs
    # float64 before the square: that of 1e-30 underflows in float32.
    second = (runs.reshape(b, group[0], N_RUNS, c, d).double() * scale).square_().mean(2)
    rounded = rounding.rounded(total) ** 2
    # A backend may repeat keys over a group, and then rounds each head's gradient before the sum (FA2 does).
    if case.group > 1:
        rounded = rounded + (rounding.rounded(exact) ** 2).sum(2)
    sums = sum_noise(case.q_len, x.squares, x.partial) * abs(scale)
    return total, second + (rounded + (sums**2).unflatten(1, group).sum(2)) / 3


@dataclass(frozen=True)
class _ColumnRuns:
    # Exact p, ds and ds through the softcap [B, H, R, C], and each run's differences to them [B, H, R, n, C].
    p: Tensor
    ds: Tensor
    clean: Tensor
    run_p: Tensor
    run_ds: Tensor
    run_clean: Tensor


def _runs(x: Tensor, rounding: Rounding) -> Tensor:
    return x.to(rounding.run_dtype).unsqueeze(3)  # [B, H, R, 1, ...]


def _column_runs(
    problem: Problem, piece: Part, full: FullPass, at: Slices, rounding: Rounding, uniform: Uniform
) -> _ColumnRuns:
    n = N_RUNS
    block = problem.block(piece)
    lse, delta = full.of_rows.lse[at], full.of_rows.delta[at]
    finite_lse = finite(lse)
    p = probabilities(block.s, lse)
    dout, v = problem.dout(piece), problem.v(piece)
    dp = problem.by_key_head(dout, v.transpose(-1, -2)).masked_fill(~block.allowed, 0.0)
    ds = p * (dp - delta[..., None])
    b, h, r, c = p.shape
    u_pair = lambda: uniform(b, h, r, n, c)  # noqa: E731 - one draw per pair and run
    of_scores = rounding.scores(problem, piece, block)
    of_again = rounding.backward_argument(of_scores, block, finite_lse)
    if rounding.dense:
        # The forward's P: exp of the distance to the row's maximum, rounded twice.
        of_exp = rounding.exp_argument(distance_from_max(block, finite(full.row_max[at])))
        of_again = torch.sqrt(of_again**2 + of_exp**2 + rounding.roundings * rounding.u**2)
    d_lse = uniform(b, h, r, n) * _runs((3 * full.var_lse[at]).sqrt(), rounding)
    argument = _runs(block.s - finite_lse[..., None], rounding)
    noisy = u_pair() * _runs(of_again, rounding) + argument - d_lse[..., None]
    # DENSE keeps the forward's P, which is at most 1.
    p_again = torch.exp(noisy.clamp_max_(0.0 if rounding.dense else LARGEST_ARGUMENT))
    of_p = math.sqrt(rounding.roundings) * rounding.weights(p, rounding.eta * block.allowed)
    run_p = p_again - _runs(p, rounding) + u_pair() * _runs(of_p, rounding)
    of_dp = rounding.masked_dp(problem, piece, block, dp)
    d_delta = uniform(b, h, r, n) * _runs((3 * full.var_delta[at]).sqrt(), rounding)
    centred = _runs(dp - delta[..., None], rounding)
    of_ds = rounding.ds(ds, block, problem.scale)
    if rounding.dense:  # the kept P may have underflowed
        of_ds = of_ds + rounding.eta * (dp - delta[..., None]).abs() * block.allowed
    run_ds = p_again * (centred + u_pair() * _runs(of_dp, rounding) - d_delta[..., None])
    run_ds = run_ds - _runs(ds, rounding) + u_pair() * _runs(of_ds, rounding)
    lost_p, lost_ds = rounding.flushed(p, ds, problem.scale)
    if bool(lost_ds.any()):
        common = uniform(b, h, 1, n, c)
        run_p = run_p + common * _runs(lost_p, rounding)
        run_ds = run_ds + common * _runs(lost_ds, rounding)
    if block.slope is None:
        return _ColumnRuns(p, ds, ds, run_p, run_ds, run_ds)
    of_slope = _runs(rounding.slope(problem, block, of_scores), rounding)
    slope, wide = _runs(block.slope, rounding), _runs(ds, rounding)
    run_clean = (run_ds + wide) * (slope + u_pair() * of_slope) - wide * slope
    # Underflow after the slope is not reduced by it.
    run_clean += u_pair() * _runs(rounding.ds_underflow(problem.scale) * block.allowed.double(), rounding)
    return _ColumnRuns(p, ds, ds * block.slope, run_p, run_ds, run_clean)
