"""How noisy are LSE and delta of every row, and the gradients that sum over every pair? Closed forms, in one pass."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.judge.oracle import Rows, Statistics, add_reduced, all_rows, empty_statistics, per_entry
from attnbench.judge.rounding import U32, Rounding, reach, sum_noise
from attnbench.judge.scores import Problem, relative_index
from attnbench.problem.scores import RelativeBias


@dataclass(frozen=True)
class FullPass:
    """What the one pass over all rows leaves: statistics, row maxima, and the variance of the noise of LSE and delta,
    [B, H, Q] each.

    `values` and `variances` hold the gradients that sum over every pair (dtable, dsink, a bias without rows
    and columns), in the shapes of their tensors.
    """

    known: Statistics
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
    finite_max = rows.row_max.masked_fill(rows.row_max == -math.inf, 0.0)
    finite_lse = rows.lse.masked_fill(rows.lse == -math.inf, 0.0)
    dout, q, k = problem.dout(part), problem.q(part), problem.k(part)
    # The float32 noise of a score, at the row's level: sum_d q_d^2 k_d^2 in the mean over P.
    spread = (q * q * problem.by_key_head(rows.p, k * k)).sum(-1).sqrt() * abs(problem.scale)
    largest, below = finite_max.abs(), torch.full_like(finite_max, math.log(case.k_len))
    if problem.sink is not None:
        # It may be the maximum, with every key far below, and nearly all of the weight.
        keys = rows.p.sum(-1).clamp_min(torch.finfo(rows.p.dtype).tiny)
        s = rows.block.s.masked_fill(~rows.block.allowed, 0.0)
        largest = torch.maximum(largest, (rows.p * s.abs()).sum(-1) / keys)
        below = torch.maximum(below, (rows.p * (s - finite_max[..., None]).abs()).sum(-1) / keys)
        spread = spread / keys.sqrt()
    argument = 2 * U32 * (math.sqrt(case.head_dim) * spread + 2 + below)
    if rounding.dense:
        argument = argument + rounding.u * (2 * largest + below + 2 * spread)
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
    if rounding.splits:
        # At most the variance of dP over the row's weights: that of the splits' means is smaller.
        apart = (rows.p * (rows.dp - rows.delta[..., None]).square()).sum(-1)
        var_delta = var_delta + rounding.split_weight(finite_lse, finite_max) ** 2 * apart / 3
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
        if "dtable" in shapes:
            # Of the float32 sums of an entry: how many terms, their squares, the largest sum on the way.
            self.terms, self.squares, self.largest = (zeros(shapes["dtable"]) for _ in range(3))

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
            on_the_way = (
                by_entry.movedim(1, 0).flatten(1, 2).cumsum(1) + self.values["dtable"][heads][:, None]
            )
            self.largest[heads] = torch.maximum(self.largest[heads], on_the_way.abs().amax(1))
            allowed = rows.block.allowed.to(rows.ds.dtype).expand(rows.ds.shape)
            self.terms[heads] += per_entry(allowed, index, entries).sum((0, 2))
            self.squares[heads] += per_entry(rows.ds**2, index, entries).sum((0, 2))
            self.values["dtable"][heads] += by_entry.sum((0, 2))
            self.variances["dtable"][heads] += (per_entry(pair, index, entries) + shared).sum((0, 2))
        if "dsink" in self.values:
            sink = rows.p_sink
            self.values["dsink"][heads] -= (sink * rows.delta).sum((0, 2))
            rounded = (steps * u * sink * rows.delta) ** 2 / 3
            if self.rounding.dense:  # a row's share may underflow, and so may P of the sink
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
        """Add what is known only when every row has gone by: how float32 rounds the sums of a table's entries."""
        if "dtable" in self.variances:
            self.variances["dtable"] += sum_noise(self.terms, self.squares, self.largest) ** 2 / 3

    def _moved(self, rows: Rows) -> Tensor:
        # How far rounded scores move P [B, H, R, K]; in FLASH float32's own noise covers it.
        s, allowed = rows.block.s, rows.block.allowed
        finite_max = rows.row_max.masked_fill(rows.row_max == -math.inf, 0.0)
        finite_lse = rows.lse.masked_fill(rows.lse == -math.inf, 0.0)
        from_max = (s - finite_max[..., None]).abs().masked_fill(~allowed, 0.0)
        of_scores = self.rounding.scores(self.problem, rows.part, rows.block)
        amplitude = torch.sqrt(of_scores**2 + self.rounding.exp_argument(from_max) ** 2)
        moved = reach(s, finite_lse, amplitude).masked_fill(~allowed, 0.0)
        # Before and after, a row's weights add up to 1 at the most: the squares of their changes to 2.
        return moved * (2 / moved.square().sum(-1, keepdim=True).clamp_min(2)).sqrt()


def full_pass(problem: Problem, batches: Tensor, kv_heads: Tensor, rounding: Rounding) -> FullPass:
    """Pass once over every row of these heads: LSE and delta, their noise, and the sums over every pair."""
    known = empty_statistics(problem, batches, kv_heads)
    row_max, var_lse, var_delta = (torch.empty_like(known.lse) for _ in range(3))
    sums = _Sums(problem, rounding)
    for at, rows in all_rows(problem, batches, kv_heads):
        known.lse[at], row_max[at] = rows.lse, rows.row_max
        if rows.delta is not None:
            known.delta[at] = rows.delta
        var_lse[at], var_delta[at] = row_variances(problem, rows, rounding)
        sums.add(rows, var_lse[at], var_delta[at])
    sums.finish()
    return FullPass(known, row_max, var_lse, var_delta, sums.values, sums.variances)
