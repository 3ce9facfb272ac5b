"""Exact attention in float64, forward and backward, on the inputs as rounded to the case's dtype.

The gradients are the explicit formulae of FlashAttention (arXiv 2205.14135, appendix B): P = exp(S - LSE),
delta = rowsum(dO * O), dS = P * (dP - delta). Memory grows linearly with the sequence: no block holds more than a few
million scores. A query without a key has out 0, gradients 0 and lse -inf (with a sink: the sink's logit).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnbench.judge.scores import Block, Part, Problem, full_precision, relative_index
from attnbench.problem.inputs import Inputs
from attnbench.problem.scores import RelativeBias

Slices = tuple[slice, slice, slice]  # over batch rows, query heads, rows

SCORES_AT_ONCE = 1 << 19  # float64 scores of a block: 4 MiB, about a core's cache


@dataclass(frozen=True)
class Rows:
    """Attention of some whole rows in float64. Backward fields are None in a forward-only case.

    lse, delta [B, H, R]; p, dp, ds [B, H, R, K] (ds: the gradient of S after all score changes); out [B, H,
    R, Dv]; dq [B, H, R, D]; p_sink [B, H, R], the weight of the sink (0 without one).
    """

    part: Part
    block: Block
    row_max: Tensor
    lse: Tensor
    p: Tensor
    p_sink: Tensor
    out: Tensor
    dp: Tensor | None = None
    delta: Tensor | None = None
    ds: Tensor | None = None
    dq: Tensor | None = None


def log_sum_exp(s: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    """Row maximum and LSE of masked scores [B, H, R, C], the sink's logit included; -inf for an empty row."""
    row_max = s.amax(-1)
    if sink is not None:
        row_max = torch.maximum(row_max, sink.expand_as(row_max))
    shift = row_max.masked_fill(row_max == -math.inf, 0.0)  # keeps -inf - -inf out of exp
    total = torch.exp(s - shift[..., None]).sum(-1)
    if sink is not None:
        total = total + torch.exp(sink - shift)
    return row_max, shift + torch.log(total)


def probabilities(s: Tensor, lse: Tensor) -> Tensor:
    """P = exp(S - LSE), 0 in rows without a key."""
    return torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])


def attend(problem: Problem, part: Part, with_dq: bool = True) -> Rows:
    """Forward, and backward if the case has one, of whole rows (the part's columns are all keys)."""
    block = problem.block(part)
    sink = problem.sink_logits(part)
    row_max, lse = log_sum_exp(block.s, sink)
    p = probabilities(block.s, lse)
    p_sink = torch.zeros_like(lse) if sink is None else torch.exp(sink - lse)
    v = problem.v(part)
    out = problem.by_key_head(p, v)  # [B, H, R, Dv]
    if not problem.case.needs_backward:
        return Rows(part, block, row_max, lse, p, p_sink, out)
    dout = problem.dout(part)
    dp = problem.by_key_head(dout, v.transpose(-1, -2))  # [B, H, R, K]
    delta = (dout * out).sum(-1)  # [B, H, R]
    ds = p * (dp - delta[..., None])
    if not with_dq:
        return Rows(part, block, row_max, lse, p, p_sink, out, dp, delta, ds)
    through_cap = ds if block.slope is None else ds * block.slope
    dq = problem.by_key_head(through_cap, problem.k(part)) * problem.scale  # [B, H, R, D]
    return Rows(part, block, row_max, lse, p, p_sink, out, dp, delta, ds, dq)


@dataclass(frozen=True)
class RowStatistics:
    """LSE and delta of every row of some heads, float64 [B, H, Q], for the gradients of columns."""

    batches: Tensor
    kv_heads: Tensor
    lse: Tensor
    delta: Tensor


def all_rows(problem: Problem, batches: Tensor, kv_heads: Tensor) -> Iterator[tuple[Slices, Rows]]:
    """Every row of these heads piece by piece, without dq, each with its slices of [B, H, Q]."""
    whole = problem.whole()
    part = Part(batches, kv_heads, whole.rows, whole.columns)
    for piece in problem.pieces(part, SCORES_AT_ONCE):
        yield slices_of(problem, part, piece), attend(problem, piece, with_dq=False)


def row_statistics(problem: Problem, batches: Tensor, kv_heads: Tensor) -> RowStatistics:
    """LSE and delta of every row of these heads."""
    of_rows = empty_row_statistics(problem, batches, kv_heads)
    for at, rows in all_rows(problem, batches, kv_heads):
        of_rows.lse[at] = rows.lse
        if rows.delta is not None:
            of_rows.delta[at] = rows.delta
    return of_rows


def empty_row_statistics(problem: Problem, batches: Tensor, kv_heads: Tensor) -> RowStatistics:
    """RowStatistics to fill in."""
    shape = (len(batches), len(kv_heads) * problem.case.group, problem.case.q_len)
    lse = torch.empty(shape, dtype=torch.float64, device=problem.device)
    return RowStatistics(batches, kv_heads, lse, torch.empty_like(lse))


def slices_of(problem: Problem, part: Part, piece: Part) -> Slices:
    """The slices of `part`'s batch rows, query heads and rows that a piece of it covers."""
    group = problem.case.group
    starts = [
        int(torch.searchsorted(getattr(part, n), getattr(piece, n)[0]))
        for n in ("batches", "kv_heads", "rows")
    ]
    b, h, r = starts[0], starts[1] * group, starts[2]
    heads = len(piece.kv_heads) * group
    return slice(b, b + len(piece.batches)), slice(h, h + heads), slice(r, r + len(piece.rows))


@dataclass(frozen=True)
class Exact:
    """The exact answer at the chosen rows and columns, float64; gradients are None in a forward-only case.

    out [B, H, R, Dv], lse [B, H, R], dq [B, H, R, D], dk [B, Hkv, C, D], dv [B, Hkv, C, Dv]; `scores` holds
    dbias (in the bias's own shape), dtable and dsink, and is empty where rows or columns were left out.
    """

    out: Tensor
    lse: Tensor
    dq: Tensor | None = None
    dk: Tensor | None = None
    dv: Tensor | None = None
    scores: dict[str, Tensor] = field(default_factory=dict)


def column_gradients(problem: Problem, columns: Tensor, of_rows: RowStatistics) -> tuple[Tensor, Tensor]:
    """dk [B, Hkv, C, D] and dv [B, Hkv, C, Dv] of some columns, from the LSE and delta of every row."""
    case = problem.case
    part = Part(of_rows.batches, of_rows.kv_heads, problem.whole().rows, columns)
    shape = (len(part.batches), len(part.kv_heads), len(columns))
    dk = torch.zeros(*shape, case.head_dim, dtype=torch.float64, device=problem.device)
    dv = torch.zeros(*shape, case.v_dim, dtype=torch.float64, device=problem.device)
    for piece in problem.pieces(part, SCORES_AT_ONCE):
        at = slices_of(problem, part, piece)
        block = problem.block(piece)
        p = probabilities(block.s, of_rows.lse[at])
        dout = problem.dout(piece)
        dp = problem.by_key_head(dout, problem.v(piece).transpose(-1, -2))
        ds = p * (dp - of_rows.delta[at][..., None])
        ds = ds if block.slope is None else ds * block.slope
        by_group = (len(piece.kv_heads), case.group)
        here = at[0], slice(at[1].start // case.group, at[1].stop // case.group)
        dk[here] += torch.einsum(
            "bngrc,bngrd->bncd", ds.unflatten(1, by_group), problem.q(piece).unflatten(1, by_group)
        )
        dv[here] += torch.einsum("bngrc,bngrd->bncd", p.unflatten(1, by_group), dout.unflatten(1, by_group))
    return dk * problem.scale, dv


def exact_attention(inputs: Inputs, rows: Tensor | None = None, columns: Tensor | None = None) -> Exact:
    """Exact attention at the chosen query rows (out, lse, dq) and key columns (dk, dv); by default at all.

    `rows` and `columns` are ascending index tensors. Gradients of score tensors sum over every pair, so they
    come only if neither is given.
    """
    with full_precision():
        problem = Problem(inputs)
        whole = problem.whole()
        some_rows = whole.rows if rows is None else rows.to(problem.device)
        chosen = Part(whole.batches, whole.kv_heads, some_rows, whole.columns)
        gathered = ScoreGradients(problem) if rows is None and columns is None else None
        case = inputs.case
        shape = (case.batch, case.q_heads, len(chosen.rows))
        out = torch.empty(*shape, case.v_dim, dtype=torch.float64, device=problem.device)
        lse = torch.empty(shape, dtype=torch.float64, device=problem.device)
        dq = torch.empty(*shape, case.head_dim, dtype=torch.float64, device=problem.device)
        for piece in problem.pieces(chosen, SCORES_AT_ONCE):
            part = attend(problem, piece)
            at = slices_of(problem, chosen, piece)
            out[at], lse[at] = part.out, part.lse
            if part.dq is not None:
                dq[at] = part.dq
                if gathered is not None:
                    gathered.add(part)
        if not case.needs_backward:
            return Exact(out, lse)
        of_rows = row_statistics(problem, whole.batches, whole.kv_heads)
        dk, dv = column_gradients(
            problem, whole.columns if columns is None else columns.to(problem.device), of_rows
        )
        return Exact(out, lse, dq, dk, dv, {} if gathered is None else gathered.sums)


class ScoreGradients:
    """The gradients of bias, relative table and sink, summed over pieces of rows; float64 in the tensors' shapes."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.sums: dict[str, Tensor] = {
            score.gradient: torch.zeros(score.tensor.shape, dtype=torch.float64, device=problem.device)
            for score in problem.inputs.scores
            if score.gradient is not None and score.tensor is not None
        }

    def add(self, rows: Rows) -> None:
        """Add the gradients of some whole rows."""
        if rows.ds is None or rows.delta is None:
            return
        problem, part = self.problem, rows.part
        heads = problem.heads(part.kv_heads)
        if "dbias" in self.sums:
            add_reduced(self.sums["dbias"], rows.ds, (part.batches, heads, part.rows, part.columns))
        if "dtable" in self.sums and isinstance(problem.relative, RelativeBias):
            case = problem.case
            index = relative_index(problem.relative.rule, part.rows, part.columns, case.q_len, case.k_len)
            by_entry = per_entry(rows.ds, index, problem.relative.entries)  # [B, H, R, E]
            self.sums["dtable"][heads] += by_entry.sum((0, 2))
        if "dsink" in self.sums:
            # The sink has no value, so its dP is 0: dS_sink = P_sink * (0 - delta).
            self.sums["dsink"][heads] -= (rows.p_sink * rows.delta).sum((0, 2))


def per_entry(x: Tensor, index: Tensor, entries: int) -> Tensor:
    """Sums of x [..., R, K] per table entry, `index` [R, K] naming the entry of each pair: [..., R, E]."""
    sums = torch.zeros(*x.shape[:-1], entries, dtype=x.dtype, device=x.device)
    return sums.scatter_add_(-1, index.expand(x.shape), x)


def add_reduced(total: Tensor, x: Tensor, indices: tuple[Tensor, ...]) -> None:
    """Add x, at the outer product of `indices`, to `total`, summed over dimensions in which total has size 1."""
    for dim, size in enumerate(total.shape):
        if size == 1:
            x = x.sum(dim, keepdim=True)
    zero = torch.zeros(1, dtype=torch.int64, device=total.device)
    at = [zero if size == 1 else index for size, index in zip(total.shape, indices, strict=True)]
    total[torch.meshgrid(*at, indexing="ij")] += x
