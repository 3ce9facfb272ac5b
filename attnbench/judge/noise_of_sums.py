"""The noise of LSE and delta of every row and of gradients that sum over every pair: closed forms, in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.judge.oracle import Rows, RowStatistics, add_reduced, all_rows, empty_row_statistics, per_entry
from attnbench.judge.rounding import (
    U32,
    Rounding,
    accumulated,
    distance_from_max,
    finite,
    reach,
    sum_noise,
)
from attnbench.judge.scores import Problem, relative_index
from attnbench.problem.scores import RelativeBias


@dataclass(frozen=True)
class FullPass:
    """The one pass over all rows: LSE, delta, maxima, and the variance of the noise of LSE and delta, [B, H, Q] each.

    `values` and `variances` hold the gradients that sum over every pair (dtable, dsink, a bias without rows and
    columns), in the shapes of their tensors.
    """

    of_rows: RowStatistics
    row_max: Tensor
    var_lse: Tensor
    var_delta: Tensor
    values: dict[str, Tensor]
    variances: dict[str, Tensor]


def row_variances(problem: Problem, rows: Rows, rounding: Rounding) -> tuple[Tensor, Tensor]:
    """Closed forms of Var(lse) and Var(delta) of whole rows, [B, H, R] each."""
    if rows.dp is None or rows.delta is None:
        return torch.zeros_like(rows.lse), torch.zeros_like(rows.lse)
    case, part = problem.case, rows.part
    row_max, lse = finite(rows.row_max), finite(rows.lse)
    dout, q, k = problem.dout(part), problem.q(part), problem.k(part)
    # The float32 noise of a score, averaged over the row: the P-weighted mean of sum_d q_d^2 k_d^2.
    spread = (q * q * problem.by_key_head(rows.p, k * k)).sum(-1).sqrt() * abs(problem.scale)
    largest, below = row_max.abs(), torch.full_like(row_max, math.log(case.k_len))
    if problem.sink is not None:
        # The sink may be the maximum and take nearly all the weight, with every key far below.
        keys = rows.p.sum(-1).clamp_min(torch.finfo(rows.p.dtype).tiny)
        s = rows.block.s.masked_fill(~rows.block.allowed, 0.0)
        largest = torch.maximum(largest, (rows.p * s.abs()).sum(-1) / keys)
        below = torch.maximum(below, (rows.p * (s - row_max[..., None]).abs()).sum(-1) / keys)
        spread = spread / keys.sqrt()
    argument = accumulated(case.head_dim, spread) + 2 * U32 * (2 + below)
    if rounding.dense:
        argument = argument + rounding.u * (2 * largest + below + 2 * spread)
        argument = argument.clamp_max(1.0)  # P stays between 0 and 1, however far off scores of 5e5 are
    p_square = rows.p.square().sum(-1)
    weighted = (rows.p * rows.dp).square().sum(-1)
    var_lse = (argument**2 * p_square + rounding.lse(lse, row_max) ** 2) / 3
    var_lse = var_lse + (rounding.row_sum(case.k_len, rows.p) ** 2 + rounding.dense_u**2) / 3
    u = rounding.u
    o_square = ((dout * rows.out) ** 2).sum(-1)
    var_delta = (u**2 * o_square + rounding.eta**2 * (dout**2).sum(-1)) / 3
    var_delta = (
        var_delta
        + (rounding.roundings * u**2 * weighted + argument**2 * (weighted + rows.delta**2 * p_square)) / 3
    )
    if rounding.eta:
        underflow = rounding.exp_underflow(row_max, lse)
        var_delta = var_delta + underflow**2 * (rows.dp.square() * rows.block.allowed).sum(-1) / 3
    if rounding.splits:
        # At most the variance of dP over the row's weights: that of the splits' means is smaller.
        apart = (rows.p * (rows.dp - rows.delta[..., None]).square()).sum(-1)
        var_delta = var_delta + rounding.split_weight(lse, row_max) ** 2 * apart / 3
        # What the LSE is off by is a factor of out.
        var_delta = var_delta + rows.delta**2 * var_lse
    var_delta = var_delta + rounding.delta(case.v_dim, o_square, weighted, rows.delta) ** 2 / 3
    # Of out: its float32 sum over the keys, and in DENSE its second rounding, taken as one of delta.
    of_out = accumulated(case.k_len, weighted.sqrt()) ** 2 + rounding.dense_u**2 * rows.delta**2
    var_delta = var_delta + of_out / 3
    return var_lse, var_delta


class _Sums:
    """Gradients that sum over every pair, and the variance of their noise, accumulated row piece by row piece."""

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
        if "dtable" in shapes:
            # Of the float32 sum of an entry: number of terms, sum of squares, largest partial sum.
            self.terms, self.squares, self.largest = (zeros(shapes["dtable"]) for _ in range(3))

    def add(self, rows: Rows, var_lse: Tensor, var_delta: Tensor) -> None:
        if not self.values or rows.ds is None or rows.delta is None:
            return
        problem, part, u = self.problem, rows.part, self.rounding.u
        heads = problem.heads(part.kv_heads)
        steps = self.rounding.ds_roundings
        # dS has its own rounding and float32's in P and dP; the noise of delta is common to a row.
        pair = (steps * u**2 + 64 * U32**2) * rows.ds**2 / 3 + self.rounding.eta**2 * rows.block.allowed / 3
        if rows.dp is not None:
            weighted = rows.p * rows.dp
            pair = pair + self.rounding.dp(problem.case.v_dim, weighted, weighted) ** 2 / 3
        if self.rounding.dense and rows.dp is not None:
            moved = self._moved(rows) ** 2 + self.rounding.eta**2 * rows.block.allowed
            pair = pair + moved * (rows.dp - rows.delta[..., None]) ** 2 / 3
        if "dtable" in self.values and isinstance(problem.relative, RelativeBias):
            case = problem.case
            index = relative_index(problem.relative.rule, part.rows, part.columns, case.q_len, case.k_len)
            entries = problem.relative.entries
            shared = per_entry(rows.p, index, entries) ** 2 * var_delta[..., None]
            by_entry = per_entry(rows.ds, index, entries)
            shared = shared + by_entry**2 * var_lse[..., None]
            partial_sums = (
                by_entry.movedim(1, 0).flatten(1, 2).cumsum(1) + self.values["dtable"][heads][:, None]
            )
            self.largest[heads] = torch.maximum(self.largest[heads], partial_sums.abs().amax(1))
            allowed = rows.block.allowed.to(rows.ds.dtype).expand(rows.ds.shape)
            self.terms[heads] += per_entry(allowed, index, entries).sum((0, 2))
            self.squares[heads] += per_entry(rows.ds**2, index, entries).sum((0, 2))
            self.values["dtable"][heads] += by_entry.sum((0, 2))
            self.variances["dtable"][heads] += (per_entry(pair, index, entries) + shared).sum((0, 2))
        if "dsink" in self.values:
            sink = rows.p_sink
            self.values["dsink"][heads] -= (sink * rows.delta).sum((0, 2))
            rounded = (steps * u * sink * rows.delta) ** 2 / 3
            if self.rounding.dense:  # a row's term may underflow, and so may P of the sink
                rounded = rounded + self.rounding.eta**2 * (1 + rows.delta**2) / 3
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

    def finish(self) -> None:
        """After the last row: add float32's rounding of the sums of a table's entries."""
        if "dtable" in self.variances:
            self.variances["dtable"] += sum_noise(self.terms, self.squares, self.largest) ** 2 / 3

    def _moved(self, rows: Rows) -> Tensor:
        # How far rounded scores move P [B, H, R, K]. FLASH's float32 noise is already counted.
        block = rows.block
        of_scores = self.rounding.scores(self.problem, rows.part, block)
        from_max = distance_from_max(block, finite(rows.row_max))
        amplitude = self.rounding.forward_argument(of_scores, from_max)
        moved = reach(block.s, finite(rows.lse), amplitude).masked_fill(~block.allowed, 0.0)
        # A row's weights sum to at most 1 before and after, so the squares of their changes sum to at most 2.
        return moved * (2 / moved.square().sum(-1, keepdim=True).clamp_min(2)).sqrt()


def full_pass(problem: Problem, batches: Tensor, kv_heads: Tensor, rounding: Rounding) -> FullPass:
    """One pass over every row of these heads: LSE and delta, their noise, and the sums over every pair."""
    of_rows = empty_row_statistics(problem, batches, kv_heads)
    row_max, var_lse, var_delta = (torch.empty_like(of_rows.lse) for _ in range(3))
    sums = _Sums(problem, rounding)
    for at, rows in all_rows(problem, batches, kv_heads):
        of_rows.lse[at], row_max[at] = rows.lse, rows.row_max
        if rows.delta is not None:
            of_rows.delta[at] = rows.delta
        var_lse[at], var_delta[at] = row_variances(problem, rows, rounding)
        sums.add(rows, var_lse[at], var_delta[at])
    sums.finish()
    return FullPass(of_rows, row_max, var_lse, var_delta, sums.values, sums.variances)
