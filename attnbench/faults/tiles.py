"""Hypotheses of faults in a kernel's steps: tiles, tails, keys counted twice, rescaling, splits, products."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import TILES, Dense
from attnbench.judge.oracle import Exact, log_sum_exp

SENTINELS = (0.0, -1e4, -5e4)


def of_kernel(dense: Dense) -> Iterator[Hypothesis]:
    """Faults of a step, in the order: mask, tails, keys counted twice, online softmax, splits."""
    if not bool(dense.allowed.all()):
        for value in SENTINELS:
            leaking = torch.where(dense.allowed[:, :, dense.rows], dense.s, value)
            words = f"masked scores are {value:g}, not -inf"
            yield Hypothesis("mask leak", words, partial(dense.answer, leaking))
    yield from _of_tails(dense)
    yield from _of_keys_twice(dense)
    for tile in TILES:
        if tile < dense.case.k_len:
            yield from _of_rescaling(dense, tile)
    yield from _of_splits(dense)
    yield from _of_products(dense)


def _of_tails(dense: Dense) -> Iterator[Hypothesis]:
    case = dense.case
    for tile in TILES:
        more = -case.k_len % tile
        words = f"keys past the last, up to a tile of {tile}, are scored 0"
        if more == 0:
            more, words = tile, f"a tile of {tile} keys past the last one is read, and scored 0"
        yield Hypothesis("tail tile", words, partial(_with_tail, dense, more))
        if not bool(dense.allowed[..., -1].all()):
            words += ", where the mask allows the last key"
            yield Hypothesis("tail tile", words, partial(_with_tail, dense, more, True))
        kept = case.k_len // tile * tile
        if 0 < kept < case.k_len:
            words = f"the row sum leaves out the last, ragged tile of {tile} keys"
            yield Hypothesis("tail tile", words, partial(_with_row_sum_of, dense, kept))
    for more in (1, 2, 4, 8):
        words = f"{more} keys past the last are scored 0"
        if all((case.k_len + more) % tile for tile in TILES):
            yield Hypothesis("tail tile", words, partial(_with_tail, dense, more))
    if case.head_dim % 16:
        words = "features past the head dim hold other numbers, and are multiplied"
        lane = dense.product(dense.q[..., :1], dense.k[..., :1])
        yield dense.if_scores_are("tail tile", words, lambda: dense.s + lane)


def _of_keys_twice(dense: Dense) -> Iterator[Hypothesis]:
    """Keys that count more than once."""
    j, k_len = dense.keys, dense.case.k_len

    def twice(words: str, keys: Tensor) -> Hypothesis:
        more = keys.double() * math.log(2)
        return dense.if_scores_are("tail tile", words, lambda: dense.s + more)

    for tile in TILES:
        if tile < k_len and k_len % tile:
            words = f"the last tile of {tile} keys starts at k_len - {tile}: keys of two tiles count twice"
            yield twice(words, (j >= k_len - tile) & (j < k_len // tile * tile))
        if tile < k_len:
            starts = (j % tile == 0) & (j > 0)
            yield twice(f"the first key of each tile of {tile} counts twice: tiles overlap", starts)
    for splits in (2, 3, 4, 8, 16):
        size = -(-k_len // splits)
        if size < k_len and size not in TILES:
            words = f"the first key of each of {splits} splits counts twice: splits overlap"
            yield twice(words, (j % size == 0) & (j > 0))
    yield twice("the last key counts twice", j == k_len - 1)
    yield twice("the first key counts twice", j == 0)
    own = dense.distances() == 0
    words = "each query's own key counts twice"
    yield dense.if_scores_are("tail tile", words, lambda: dense.s + own * math.log(2))


def _of_products(dense: Dense) -> Iterator[Hypothesis]:
    """Another axis, or no matrix product."""
    case = dense.case
    for rows in (*TILES[2:], case.q_len):
        if rows <= case.q_len:
            words = f"the softmax runs over the queries ({rows} at once), not the keys"
            yield Hypothesis("not attention", words, partial(_over_queries, dense, rows))
    for tile in (*TILES, case.k_len):
        if tile <= case.k_len:
            words = f"each weight meets the first row of its tile of {tile} values: no matrix product"
            first = dense.keys // tile * tile
            yield Hypothesis("not attention", words, partial(_with_values_at, dense, first))


def _with_values_at(dense: Dense, keys: Tensor) -> Tensor:
    return dense.answer(v=dense.v[:, :, keys]).out


def _over_queries(dense: Dense, rows: int) -> Tensor:
    whole = Dense(dense.inputs, dense.allowed)
    weights = [torch.softmax(some, 2).nan_to_num(0.0) for some in whole.masked().split(rows, 2)]
    return torch.cat(weights, 2) @ whole.v


def _with_tail(dense: Dense, more: int, like_the_last: bool = False) -> Exact:
    """The answer with `more` keys of score and value 0; `like_the_last`: seen by rows that see the last key alone."""
    masked = dense.masked()
    tail = torch.zeros_like(masked[..., :1])
    if like_the_last:
        tail = tail.masked_fill(masked[..., -1:] == -math.inf, -math.inf)
    s = torch.cat([masked, tail.expand(*tail.shape[:3], more)], -1)
    return dense.answer(s, torch.nn.functional.pad(dense.v, (0, 0, 0, more)))


def _with_row_sum_of(dense: Dense, kept: int) -> Tensor:
    """out divided by the row sum over the first keys alone."""
    right, masked = dense.answer(), dense.masked()
    _, lse = log_sum_exp(masked[..., :kept], dense.sink)
    factor = torch.exp(right.lse - lse).nan_to_num(1.0, 1.0)
    return right.out * factor[..., None]


def _of_rescaling(dense: Dense, tile: int) -> Iterator[Hypothesis]:
    """The online softmax (arXiv 2205.14135, algorithm 1) with one rescaling wrong."""
    if tile == TILES[0]:
        words = "the maximum starts at 0: rows whose scores are far below it underflow"
        yield Hypothesis("online softmax", words, partial(_from_zero, dense))
        words = "no maximum is taken off before exp: large scores overflow"
        yield Hypothesis("online softmax", words, partial(_without_maximum, dense))
    words = f"the maximum is that of the first tile of {tile} keys: later scores overflow"
    yield Hypothesis("online softmax", words, partial(_without_maximum, dense, tile))
    kept: Callable[[Tensor], Tensor] = lambda alpha: alpha  # noqa: E731
    none = torch.ones_like
    flipped: Callable[[Tensor], Tensor] = lambda a: torch.where(a == 0, a, 1 / a)  # noqa: E731
    for words, of_sum, of_values in (
        ("the accumulator is not rescaled when the maximum rises", kept, none),
        ("the row sum is not rescaled when the maximum rises", none, kept),
        ("neither accumulator nor row sum is rescaled when the maximum rises", none, none),
        ("the sign of the rescaling's exponent is wrong", flipped, flipped),
    ):
        at = f"{words} (tiles of {tile} keys)"
        yield Hypothesis("online softmax", at, partial(_online, dense, tile, of_sum, of_values))


def _online(
    dense: Dense, tile: int, of_sum: Callable[[Tensor], Tensor], of_values: Callable[[Tensor], Tensor]
) -> Tensor:
    s = dense.masked()
    top = torch.full_like(s[..., :1], -math.inf)
    total, values = torch.zeros_like(top), torch.zeros(1, dtype=s.dtype, device=s.device)
    for some, v in zip(s.split(tile, -1), dense.v.split(tile, 2), strict=True):
        new = torch.maximum(top, some.amax(-1, keepdim=True))
        shift = new.masked_fill(new == -math.inf, 0.0)
        alpha, p = torch.exp(top - shift), torch.exp(some - shift)
        total = total * of_sum(alpha) + p.sum(-1, keepdim=True)
        values = values * of_values(alpha) + p @ v
        top = new
    if dense.sink is not None:
        new = torch.maximum(top, dense.sink[..., None])
        alpha = torch.exp(top - new)
        total, values = total * alpha + torch.exp(dense.sink[..., None] - new), values * alpha
    return values / total.masked_fill(total == 0, 1.0)


def _from_zero(dense: Dense) -> Tensor:
    """P = exp(S - max(0, row maximum)) in float32, whose smallest numbers underflow."""
    s = dense.masked()
    p = torch.exp((s - s.amax(-1, keepdim=True).clamp_min(0.0)).float()).double()
    total = p.sum(-1, keepdim=True)
    return p @ dense.v / total.masked_fill(total == 0, 1.0)


def _without_maximum(dense: Dense, tile: int = 0) -> Tensor:
    """P = exp(S), or exp(S - the maximum of the first tile), in float32."""
    s = dense.masked()
    if tile:
        top = s[..., :tile].amax(-1, keepdim=True)
        s = s - top.masked_fill(top == -math.inf, 0.0)
    p = torch.exp(s.float()).double()
    total = p.float().sum(-1, keepdim=True).double()
    return (p @ dense.v).float().double() / total.masked_fill(total == 0, 1.0)


def _of_splits(dense: Dense) -> Iterator[Hypothesis]:
    """Keys in splits of their own, merged wrongly."""
    if dense.sink is not None:
        return
    tried: set[tuple[int, int]] = set()
    for tile in TILES[:4]:
        tiles = -(-dense.case.k_len // tile)
        for splits in (2, 3, 4, 8):
            length = -(-tiles // splits) * tile
            count = -(-dense.case.k_len // length)
            if count > 1 and (length, count) not in tried:
                tried.add((length, count))
                yield from _of_merge(dense, length)


def _of_merge(dense: Dense, length: int) -> Iterator[Hypothesis]:
    made: list[tuple[Tensor, Tensor]] = []

    def parts() -> list[tuple[Tensor, Tensor]]:
        if not made:
            for s, v in zip(dense.masked().split(length, -1), dense.v.split(length, 2), strict=True):
                part = dense.answer(s, v)
                made.append((part.out, part.lse))
        return made

    def unweighted() -> Tensor:
        count = sum((lse > -math.inf).double() for _, lse in parts())
        return sum(out for out, _ in parts()) / torch.as_tensor(count).clamp_min(1.0)[..., None]  # type: ignore[return-value]

    def merged(
        change: Callable[[Tensor], Tensor], base: float = 1.0, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        outs = [parts()[0][0], *(change(out) for out, _ in parts()[1:])]
        lse = (torch.stack([lse for _, lse in parts()]) * base).to(dtype).double()
        top = lse.amax(0)
        weights = torch.exp(lse - top.masked_fill(top == -math.inf, 0.0))
        total = weights.sum(0)
        values = sum(w[..., None] * out for w, out in zip(weights, outs, strict=True))
        return values / total.masked_fill(total == 0, 1.0)[..., None]  # type: ignore[return-value]

    splits = f"(splits of {length} keys)"
    same: Callable[[Tensor], Tensor] = lambda out: out  # noqa: E731
    made_of = (
        ("splits are merged without their weights", unweighted),
        ("splits are merged as if their LSE were in base 2", lambda: merged(same, math.log(2))),
        ("splits are merged as if their LSE were in another base", lambda: merged(same, 1 / math.log(2))),
        ("the LSE of each split is rounded to bf16", lambda: merged(same, dtype=torch.bfloat16)),
        ("the LSE of each split is rounded to fp16", lambda: merged(same, dtype=torch.float16)),
        ("the partial results of batch row 0 are merged", lambda: merged(lambda x: x[:1].expand_as(x))),
        ("the partial results of the next head are merged", lambda: merged(lambda x: x.roll(1, 1))),
        ("the partial results of the head before are merged", lambda: merged(lambda x: x.roll(-1, 1))),
    )
    for words, make in made_of:
        yield Hypothesis("split merge", f"{words} {splits}", make)
