"""What is the right answer? Exact attention in float64, forward and backward, on the rounded inputs.

Written apart from every backend: masks come from their predicates, a block of rows at a time; score changes
are computed here from their definitions. The gradients are the explicit formulae of FlashAttention (arXiv
2205.14135, appendix B): P = exp(S - LSE), delta = rowsum(dO * O), dS = P * (dP - delta). Memory grows with
the sequence: no block holds more than a few million scores. A query without a key has out 0, gradients 0 and
lse -inf (with a sink: the sink's logit).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.problem.grammar import parse_call
from attnbench.problem.inputs import Inputs
from attnbench.problem.scores import ALiBi, Bias, RelativeBias, Sink, Softcap

Window = tuple[slice, slice, slice]  # over batch rows, query heads, rows

SCORES_AT_ONCE = 1 << 19  # float64 scores of a block: 4 MiB, near what a core's cache holds


@contextmanager
def full_precision() -> Iterator[None]:
    """Autocast and TF32 off, whatever the caller has switched on; put back afterwards."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


@dataclass(frozen=True)
class Part:
    """Which part of a problem: index tensors of batch rows, key heads (with their query heads), rows,
    columns.
    """

    batches: Tensor
    kv_heads: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Block:
    """The scores of one part, float64 [B, H, R, C]: S after all score changes (-inf where masked).

    `slope` is the derivative of the softcap at each score (None: 1). `raw` is the scaled score before the
    softcap.
    """

    s: Tensor
    raw: Tensor
    slope: Tensor | None
    allowed: Tensor


def t5_thresholds(buckets: int, max_distance: int) -> list[int]:
    """The least distance behind the query at which each bucket after the first begins (one direction).

    Half of the buckets are exact; bucket `exact + m` begins where (distance / exact) ** (buckets - exact)
    reaches (max_distance / exact) ** m: in whole numbers, so that no logarithm rounds at a boundary.
    """
    exact = buckets // 2
    logarithmic = buckets - exact
    starts = list(range(1, exact + 1))
    for m in range(1, logarithmic):
        distance = exact
        while distance**logarithmic * exact**m < max_distance**m * exact**logarithmic:
            distance += 1
        starts.append(distance)
    return starts


def relative_index(rule: str, rows: Tensor, columns: Tensor, q_len: int, k_len: int) -> Tensor:
    """The table entry that each pair of rows x columns reads: int64 [R, C]."""
    name, args = parse_call(rule)
    i, j = rows[:, None], columns[None, :]
    if name == "t5":
        buckets, max_distance, both_ways = int(args[0]), int(args[1]), args[2] == "bidirectional"
        offset = j - (i + k_len - q_len)  # positive: the key lies ahead
        one_way = buckets // 2 if both_ways else buckets
        starts = torch.tensor(t5_thresholds(one_way, max_distance), device=rows.device)
        distance = offset.abs() if both_ways else (-offset).clamp_min(0)
        bucket = torch.bucketize(distance, starts, right=True)
        return bucket + (offset > 0) * one_way if both_ways else bucket
    height, width = int(args[0]), int(args[1])
    vertical = torch.div(i, width, rounding_mode="floor") - torch.div(j, width, rounding_mode="floor")
    horizontal = i % width - j % width
    return (vertical + height - 1) * (2 * width - 1) + (horizontal + width - 1)


def take(x: Tensor, *indices: Tensor | None) -> Tensor:
    """x at the outer product of index tensors, one for each leading dimension (None, or size 1: the
    whole).
    """
    for dim, index in enumerate(indices):
        if index is None or x.shape[dim] == 1:
            continue
        whole = index.numel() == x.shape[dim] and bool(index[0] == 0) and bool(index[-1] == x.shape[dim] - 1)
        if not whole:
            x = x.index_select(dim, index)
    return x


class Problem:
    """The inputs of one case, read in float64 a part at a time, on the device where they lie."""

    def __init__(self, inputs: Inputs) -> None:
        self.inputs = inputs
        self.case = inputs.case
        self.device = inputs.device
        self.scale = self.case.softmax_scale
        self.predicate = self.case.mask.predicate(self.case.extent, self.device)
        named = {score.kind: score for score in inputs.scores}
        self.softcap = named.get("softcap")
        self.bias, self.relative, self.alibi = named.get("bias"), named.get("relative"), named.get("alibi")
        self.sink = named.get("sink")
        for score in (self.bias, self.relative, self.sink):
            if score is not None and score.tensor is None:
                raise AttnbenchError(f"{score} carries no tensor; the oracle takes inputs from make_inputs")

    def whole(self) -> Part:
        """Every batch row, head, row and column."""
        case = self.case
        sizes = (case.batch, case.kv_heads, case.q_len, case.k_len)
        return Part(*(torch.arange(size, device=self.device) for size in sizes))

    def heads(self, kv_heads: Tensor) -> Tensor:
        """The query heads that read these key heads, in order."""
        group = self.case.group
        return (kv_heads[:, None] * group + torch.arange(group, device=self.device)).flatten()

    def q(self, part: Part) -> Tensor:
        return take(
            self.inputs.q, part.batches, self.heads(part.kv_heads), part.rows
        ).double()  # [B, H, R, D]

    def k(self, part: Part) -> Tensor:
        return take(self.inputs.k, part.batches, part.kv_heads, part.columns).double()  # [B, Hkv, C, D]

    def v(self, part: Part) -> Tensor:
        return take(self.inputs.v, part.batches, part.kv_heads, part.columns).double()  # [B, Hkv, C, Dv]

    def dout(self, part: Part) -> Tensor:
        if self.inputs.dout is None:
            raise AttnbenchError(f"case {self.case.id} has no backward, so there is no dO")
        return take(
            self.inputs.dout, part.batches, self.heads(part.kv_heads), part.rows
        ).double()  # [B, H, R, Dv]

    def by_key_head(self, left: Tensor, right: Tensor) -> Tensor:
        """left [B, H, R, X] times right [B, Hkv, X, Y] of the key head that each query head reads: [B, H, R,
        Y].
        """
        b, h, r, x = left.shape
        n = right.shape[1]
        return torch.matmul(left.reshape(b, n, h // n * r, x), right).reshape(b, h, r, right.shape[-1])

    def allowed(self, part: Part) -> Tensor:
        """Who may attend whom: bool [B, H, R, C]."""
        heads = self.heads(part.kv_heads)
        b, h = part.batches[:, None, None, None], heads[None, :, None, None]
        may = self.predicate(b, h, part.rows[None, None, :, None], part.columns[None, None, None, :])
        shape = (len(part.batches), len(heads), len(part.rows), len(part.columns))
        return may.expand(shape)

    def added(self, part: Part) -> list[Tensor]:
        """The terms added to the scores, each float64 and broadcastable to [B, H, R, C]."""
        case, heads = self.case, self.heads(part.kv_heads)
        terms = []
        if isinstance(self.bias, Bias) and self.bias.tensor is not None:
            terms.append(take(self.bias.tensor, part.batches, heads, part.rows, part.columns).double())
        if isinstance(self.relative, RelativeBias) and self.relative.tensor is not None:
            index = relative_index(self.relative.rule, part.rows, part.columns, case.q_len, case.k_len)
            terms.append(self.relative.tensor.double()[heads][:, index][None])  # [1, H, R, C]
        if isinstance(self.alibi, ALiBi):
            slopes = torch.tensor(_slopes(self.alibi, case.q_heads), dtype=torch.float64, device=self.device)[
                heads
            ]
            position = part.rows + case.k_len - case.q_len
            distance = (position[:, None] - part.columns[None, :]).abs().double()
            terms.append(-slopes[None, :, None, None] * distance)
        return terms

    def block(self, part: Part) -> Block:
        """The scores of a part."""
        raw = self.by_key_head(self.q(part), self.k(part).transpose(-1, -2)).mul_(self.scale)  # [B, H, R, C]
        s, slope = raw, None
        if isinstance(self.softcap, Softcap):
            tanh = torch.tanh(raw / self.softcap.cap)
            s, slope = self.softcap.cap * tanh, 1 - tanh * tanh
        for term in self.added(part):
            s = s + term
        allowed = self.allowed(part)
        return Block(s.masked_fill(~allowed, -math.inf), raw, slope, allowed)

    def sink_logits(self, part: Part) -> Tensor | None:
        """The sink's logit of each head: float64 [1, H, 1], or None."""
        if not isinstance(self.sink, Sink) or self.sink.tensor is None:
            return None
        return self.sink.tensor.double()[self.heads(part.kv_heads)][None, :, None]

    def pieces(self, part: Part, scores_at_once: int) -> Iterator[Part]:
        """The part in pieces of about `scores_at_once` scores, split over batches, key heads and rows, in
        order.
        """
        # Short rows cost their features, not their scores.
        a_row = self.case.group * max(len(part.columns), self.case.head_dim, self.case.v_dim)
        rows_at_once = max(1, min(len(part.rows), scores_at_once // a_row))
        heads_at_once = max(1, min(len(part.kv_heads), scores_at_once // (a_row * rows_at_once)))
        batches_at_once = max(1, scores_at_once // (a_row * rows_at_once * heads_at_once))
        for batches in part.batches.split(batches_at_once):
            for kv_heads in part.kv_heads.split(heads_at_once):
                for rows in part.rows.split(rows_at_once):
                    yield Part(batches, kv_heads, rows, part.columns)


def _slopes(alibi: ALiBi, heads: int) -> list[float]:
    # arXiv 2108.12409: a geometric sequence from 2^(-8/n); its code for n no power of two takes the
    # sequence of the power below, then every other one of twice that power.
    if alibi.slopes is not None:
        return list(alibi.slopes)
    below = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8 * (n + 1) / below) for n in range(below)]
    double = [2.0 ** (-8 * (n + 1) / (2 * below)) for n in range(2 * below)]
    return first + double[0::2][: heads - below]


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
    """Row maximum and LSE of masked scores [B, H, R, C], the sink's logit included; -inf for a row with
    nothing.
    """
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
    """Forward, and where the case has one backward, of whole rows (the part's columns are all keys)."""
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
class Statistics:
    """LSE and delta of every row of some heads, float64 [B, H, Q]: what the gradients of columns need."""

    batches: Tensor
    kv_heads: Tensor
    lse: Tensor
    delta: Tensor


def all_rows(problem: Problem, batches: Tensor, kv_heads: Tensor) -> Iterator[tuple[Window, Rows]]:
    """Every row of these heads a piece at a time, without dq, and where each piece lies in [B, H, Q]."""
    whole = problem.whole()
    part = Part(batches, kv_heads, whole.rows, whole.columns)
    for piece in problem.pieces(part, SCORES_AT_ONCE):
        yield window(problem, part, piece), attend(problem, piece, with_dq=False)


def statistics(problem: Problem, batches: Tensor, kv_heads: Tensor) -> Statistics:
    """LSE and delta of every row of these heads."""
    known = empty_statistics(problem, batches, kv_heads)
    for at, rows in all_rows(problem, batches, kv_heads):
        known.lse[at] = rows.lse
        if rows.delta is not None:
            known.delta[at] = rows.delta
    return known


def empty_statistics(problem: Problem, batches: Tensor, kv_heads: Tensor) -> Statistics:
    """Statistics to be filled in."""
    shape = (len(batches), len(kv_heads) * problem.case.group, problem.case.q_len)
    lse = torch.empty(shape, dtype=torch.float64, device=problem.device)
    return Statistics(batches, kv_heads, lse, torch.empty_like(lse))


def window(problem: Problem, part: Part, piece: Part) -> Window:
    """Where a piece of `part` lies among its batch rows, query heads and rows: pieces are cut in order."""
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


def column_gradients(problem: Problem, columns: Tensor, known: Statistics) -> tuple[Tensor, Tensor]:
    """dk [B, Hkv, C, D] and dv [B, Hkv, C, Dv] of some columns, from the LSE and delta of every row."""
    case = problem.case
    part = Part(known.batches, known.kv_heads, problem.whole().rows, columns)
    shape = (len(part.batches), len(part.kv_heads), len(columns))
    dk = torch.zeros(*shape, case.head_dim, dtype=torch.float64, device=problem.device)
    dv = torch.zeros(*shape, case.v_dim, dtype=torch.float64, device=problem.device)
    for piece in problem.pieces(part, SCORES_AT_ONCE):
        at = window(problem, part, piece)
        block = problem.block(piece)
        p = probabilities(block.s, known.lse[at])
        dout = problem.dout(piece)
        dp = problem.by_key_head(dout, problem.v(piece).transpose(-1, -2))
        ds = p * (dp - known.delta[at][..., None])
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
    come only where neither is given.
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
            at = window(problem, chosen, piece)
            out[at], lse[at] = part.out, part.lse
            if part.dq is not None:
                dq[at] = part.dq
                if gathered is not None:
                    gathered.add(part)
        if not case.needs_backward:
            return Exact(out, lse)
        known = statistics(problem, whole.batches, whole.kv_heads)
        dk, dv = column_gradients(
            problem, whole.columns if columns is None else columns.to(problem.device), known
        )
        return Exact(out, lse, dq, dk, dv, {} if gathered is None else gathered.sums)


class ScoreGradients:
    """The gradients of bias, relative table and sink, summed as whole rows go by; float64 in the tensors'
    shapes.
    """

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.sums: dict[str, Tensor] = {
            score.gradient: torch.zeros(score.tensor.shape, dtype=torch.float64, device=problem.device)
            for score in problem.inputs.scores
            if score.gradient is not None and score.tensor is not None
        }

    def add(self, rows: Rows) -> None:
        """Take the gradients of some whole rows in."""
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
    """Sums of x [..., R, K] by the table entry index [R, K] of each pair: [..., R, E]."""
    sums = torch.zeros(*x.shape[:-1], entries, dtype=x.dtype, device=x.device)
    return sums.scatter_add_(-1, index.expand(x.shape), x)


def add_reduced(total: Tensor, x: Tensor, indices: tuple[Tensor, ...]) -> None:
    """Add x, which lies at the outer product of `indices`, into `total`, summed where total has size 1."""
    for dim, size in enumerate(total.shape):
        if size == 1:
            x = x.sum(dim, keepdim=True)
    zero = torch.zeros(1, dtype=torch.int64, device=total.device)
    at = [zero if size == 1 else index for size, index in zip(total.shape, indices, strict=True)]
    total[torch.meshgrid(*at, indexing="ij")] += x
