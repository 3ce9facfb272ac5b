"""How noisy are out, LSE and dq of some query rows? Monte-Carlo runs of the FlashAttention algorithm on them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.judge.oracle import Rows
from attnbench.judge.rounding import (
    LARGEST_ARGUMENT,
    N_RUNS,
    U32,
    Rounding,
    Uniform,
    largest_partial,
    slope_noise,
    sum_noise,
)
from attnbench.judge.scores import Problem


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
    if rounding.splits:
        # Which keys make a split is the backend's choice: runs of 2 to 8 splits of equal length take turns.
        counts = torch.arange(n, device=problem.device) % 7 + 2
        split = torch.arange(k, device=problem.device) * counts[:, None] // k_len  # [n, K]
        common = uniform(b, h, n, r, 8) * _wide(
            rounding.split_weight(finite_lse, finite_max)[..., None], work
        )
        noisy += common.gather(-1, split[None, None, :, None].expand(b, h, n, r, k))
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
    _, lost = rounding.flushed(rows.p, rows.ds, problem.scale)
    if bool(lost.any()):
        d_ds = d_ds + uniform(b, h, n, r, 1) * _wide(lost, work)
    through_cap, clean = d_ds, rows.ds
    if block.slope is not None:
        of_slope = _wide(slope_noise(problem, block, of_scores, rounding), work)
        slope = _wide(block.slope, work)
        through_cap = (d_ds + _wide(rows.ds, work)) * (slope + u_pair() * of_slope) - _wide(
            rows.ds, work
        ) * slope
        # What underflows after the slope is not made smaller by it.
        through_cap = through_cap + u_pair() * _wide(ds_eta * block.allowed.double(), work)
        clean = rows.ds * block.slope
    squares = problem.by_key_head(clean**2, k64**2)
    sum_dq = sum_noise(k_len, squares, largest_partial(problem, clean, k64)) * abs(problem.scale)
    of_dq = torch.sqrt(sum_dq**2 + (roundings * rounding.rounded(rows.dq)) ** 2)
    d_dq = _by_key_head(problem, through_cap, k64.to(work)) * problem.scale
    d_dq = d_dq + uniform(b, h, n, r, d_dq.shape[-1]) * _wide(of_dq, work)
    d_dq = d_dq.masked_fill(empty[:, :, None, :, None], 0.0)
    return RowNoise(_second_moment(d_out), _second_moment(d_lse), _second_moment(d_dq), d_ds)
