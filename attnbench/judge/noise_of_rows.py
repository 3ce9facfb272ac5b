"""The noise of out, LSE and dq of chosen query rows, by Monte-Carlo runs of the FlashAttention algorithm."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.judge.oracle import Rows
from attnbench.judge.rounding import (
    LARGEST_ARGUMENT,
    N_RUNS,
    Rounding,
    Uniform,
    distance_from_max,
    finite,
    largest_partial,
    sum_noise,
)
from attnbench.judge.scores import Problem


@dataclass(frozen=True)
class RowNoise:
    """Second moments of the noise of some rows: out [B, H, R, Dv], lse [B, H, R], dq [B, H, R, D].

    `ds_runs` are the differences of each run in dS, [B, H, n, R, K]: gradients of a bias sum them.
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


def _second_moment(runs: Tensor) -> Tensor:
    return (runs.double() ** 2).mean(2)


def row_noise(problem: Problem, rows: Rows, rounding: Rounding, uniform: Uniform) -> RowNoise:
    """The noise of out, lse and dq of some whole rows."""
    part, block, work = rows.part, rows.block, rounding.run_dtype
    u, k_len, v_dim = rounding.u, problem.case.k_len, problem.case.v_dim
    b, h, r, k = block.s.shape
    n = N_RUNS
    u_pair = lambda: uniform(b, h, n, r, k)  # noqa: E731 - one draw per pair and run
    row_max, lse = finite(rows.row_max), finite(rows.lse)
    of_scores = rounding.scores(problem, part, block)
    of_argument = rounding.forward_argument(of_scores, distance_from_max(block, row_max))
    if rounding.splits:  # P may be taken from an LSE, as in the backward
        of_argument = torch.maximum(of_argument, rounding.backward_argument(of_scores, block, lse))
    v64 = problem.v(part)

    # Forward. exp in units of the final LSE: without noise its sum (with the sink) is 1.
    argument = _wide(block.s - lse[..., None], work)
    noisy = u_pair() * _wide(of_argument, work) + argument
    if rounding.splits:
        # The backend chooses the splits: the runs take 2 to 8 splits of equal length in turn.
        counts = torch.arange(n, device=problem.device) % 7 + 2
        split = torch.arange(k, device=problem.device) * counts[:, None] // k_len  # [n, K]
        of_split = rounding.split_weight(lse, row_max)[..., None]
        common = uniform(b, h, n, r, 8) * _wide(of_split, work)
        noisy += common.gather(-1, split[None, None, :, None].expand(b, h, n, r, k))
    p = torch.exp(noisy.clamp_max_(LARGEST_ARGUMENT))  # [B, H, n, R, K]
    of_sum = rounding.row_sum(k_len, rows.p)
    total = p.sum(-1) + _wide(rows.p_sink, work) + uniform(b, h, n, r) * _wide(of_sum, work)
    if rounding.dense:
        total = total + uniform(b, h, n, r) * u
    total = total.clamp_min(torch.finfo(work).tiny)
    underflow = rounding.exp_underflow(row_max, lse)[..., None] * block.allowed
    of_p = rounding.weights(p, _wide(underflow, work))
    weights = p + u_pair() * of_p * math.sqrt(rounding.roundings)
    divisor = total
    if rounding.splits:  # by exp(LSE), which float32 holds, and not by the sum of these weights
        divisor = total * torch.exp(uniform(b, h, n, r) * _wide(rounding.lse(lse, row_max), work))
    out = _by_key_head(problem, weights, v64.to(work)) / divisor[..., None]
    sum_out = sum_noise(k_len, problem.by_key_head(rows.p**2, v64**2), largest_partial(problem, rows.p, v64))
    of_out = torch.sqrt(sum_out**2 + rounding.rounded(rows.out) ** 2)
    empty = rows.lse == -math.inf
    d_out = out - _wide(rows.out, work) + uniform(b, h, n, r, out.shape[-1]) * _wide(of_out, work)
    d_out = d_out.masked_fill(empty[:, :, None, :, None], 0.0)
    d_lse = torch.log(total) + uniform(b, h, n, r) * _wide(rounding.lse(lse, row_max), work)
    d_lse = d_lse.masked_fill(empty[:, :, None, :], 0.0)
    if rows.dp is None or rows.delta is None or rows.ds is None or rows.dq is None:
        return RowNoise(_second_moment(d_out), _second_moment(d_lse))

    dout64, k64 = problem.dout(part), problem.k(part)
    if rounding.dense:
        p_again = weights / total[..., None]  # the forward's P was kept
    else:
        of_again = rounding.backward_argument(of_scores, block, lse)
        noisy = u_pair() * _wide(of_again, work) + argument - d_lse[..., None]
        p_again = torch.exp(noisy.clamp_max_(LARGEST_ARGUMENT))
    dp64 = rows.dp.masked_fill(~block.allowed, 0.0)
    of_dp = rounding.masked_dp(problem, part, block, dp64)
    dout_out, p_dp = ((dout64 * rows.out) ** 2).sum(-1), (rows.p * dp64).square().sum(-1)
    of_delta = rounding.delta(v_dim, dout_out, p_dp, rows.delta)
    d_delta = (_wide(dout64, work) * d_out).sum(-1) + uniform(b, h, n, r) * _wide(of_delta, work)
    centred = _wide(dp64 - rows.delta[..., None], work)
    ds = p_again * (centred + u_pair() * _wide(of_dp, work) - d_delta[..., None])
    d_ds = ds - _wide(rows.ds, work) + u_pair() * _wide(rounding.ds(rows.ds, block, problem.scale), work)
    _, lost = rounding.flushed(rows.p, rows.ds, problem.scale)
    if bool(lost.any()):
        d_ds = d_ds + uniform(b, h, n, r, 1) * _wide(lost, work)
    through_cap, clean = d_ds, rows.ds
    if block.slope is not None:
        of_slope = _wide(rounding.slope(problem, block, of_scores), work)
        slope = _wide(block.slope, work)
        through_cap = (d_ds + _wide(rows.ds, work)) * (slope + u_pair() * of_slope) - _wide(
            rows.ds, work
        ) * slope
        # Underflow after the slope is not reduced by it.
        through_cap = through_cap + u_pair() * _wide(
            rounding.ds_underflow(problem.scale) * block.allowed.double(), work
        )
        clean = rows.ds * block.slope
    squares = problem.by_key_head(clean**2, k64**2)
    sum_dq = sum_noise(k_len, squares, largest_partial(problem, clean, k64)) * abs(problem.scale)
    of_dq = torch.sqrt(sum_dq**2 + (rounding.roundings * rounding.rounded(rows.dq)) ** 2)
    d_dq = _by_key_head(problem, through_cap, k64.to(work)) * problem.scale
    d_dq = d_dq + uniform(b, h, n, r, d_dq.shape[-1]) * _wide(of_dq, work)
    d_dq = d_dq.masked_fill(empty[:, :, None, :, None], 0.0)
    return RowNoise(_second_moment(d_out), _second_moment(d_lse), _second_moment(d_dq), d_ds)
