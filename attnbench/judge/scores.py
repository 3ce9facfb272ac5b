"""The scores of a part of a problem in float64, from the inputs as rounded, one block at a time.

Masks come from their predicates; score changes are computed here from their definitions, independently of backends.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.problem.grammar import parse_call
from attnbench.problem.inputs import Inputs
from attnbench.problem.scores import ALiBi, Bias, RelativeBias, Sink, Softcap

AT_ONCE = {"cpu": 1, "cuda": 16}  # times the sizes that fit a core's cache


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn autocast and TF32 off, and restore them afterwards."""
    tf32 = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = tf32


@dataclass(frozen=True)
class Part:
    """A part of a problem: index tensors of batch rows, key heads (with their query heads), rows, columns."""

    batches: Tensor
    kv_heads: Tensor
    rows: Tensor
    columns: Tensor


@dataclass(frozen=True)
class Block:
    """The scores of one part, float64 [B, H, R, C]: S after all score changes (-inf where masked).

    `slope` is the derivative of the softcap at each score (None: 1). `raw` is the scaled score before the softcap.
    """

    s: Tensor
    raw: Tensor
    slope: Tensor | None
    allowed: Tensor


def t5_thresholds(buckets: int, max_distance: int) -> list[int]:
    """The least distance behind the query at which each bucket after the first begins (one direction).

    Half of the buckets hold one distance each; bucket `exact + m` begins at the distance where (distance / exact) **
    (buckets - exact) reaches (max_distance / exact) ** m. Integers, so that no logarithm rounds at a boundary.
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
    """x at the outer product of index tensors, one per leading dimension (None, or size 1: all of it)."""
    for dim, index in enumerate(indices):
        if index is None or x.shape[dim] == 1:
            continue
        whole = index.numel() == x.shape[dim] and bool(index[0] == 0) and bool(index[-1] == x.shape[dim] - 1)
        if not whole:
            x = x.index_select(dim, index)
    return x


class Problem:
    """The inputs of one case, read in float64 one part at a time, on their own device."""

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

    @property
    def enlarged(self) -> int:
        """How many times as much as on a CPU, whose cores' caches set the sizes, is computed at once on this device."""
        return AT_ONCE[self.device.type]

    def pieces(self, part: Part, scores_at_once: int) -> Iterator[Part]:
        """The part in pieces of about `scores_at_once` scores, split over batches, key heads and rows, in order.

        On a GPU they are `enlarged`: a piece of a core's cache is done before the next is launched.
        """
        scores_at_once *= self.enlarged
        # Short rows cost as much as their features.
        a_row = self.case.group * max(len(part.columns), self.case.head_dim, self.case.v_dim)
        rows_at_once = max(1, min(len(part.rows), scores_at_once // a_row))
        heads_at_once = max(1, min(len(part.kv_heads), scores_at_once // (a_row * rows_at_once)))
        batches_at_once = max(1, scores_at_once // (a_row * rows_at_once * heads_at_once))
        for batches in part.batches.split(batches_at_once):
            for kv_heads in part.kv_heads.split(heads_at_once):
                for rows in part.rows.split(rows_at_once):
                    yield Part(batches, kv_heads, rows, part.columns)


def _slopes(alibi: ALiBi, heads: int) -> list[float]:
    # arXiv 2108.12409: a geometric sequence from 2^(-8/n). If n is no power of two, its code takes the sequence of the
    # power below, then every other slope of twice that power.
    if alibi.slopes is not None:
        return list(alibi.slopes)
    below = 1 << (heads.bit_length() - 1)
    first = [2.0 ** (-8 * (n + 1) / below) for n in range(below)]
    double = [2.0 ** (-8 * (n + 1) / (2 * below)) for n in range(2 * below)]
    return first + double[0::2][: heads - below]
