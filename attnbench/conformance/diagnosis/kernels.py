"""Hypotheses of faults in a kernel's steps: tiles, rescaling, splits, tails, strides, axes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.causes import Hypothesis
from attnbench.conformance.diagnosis.dense import TILES, Dense
from attnbench.judge.oracle import Exact

SENTINELS = (0.0, -1e4, -5e4)


def of_kernel(dense: Dense, right: Exact) -> Iterator[Hypothesis]:
    """Faults of a step, in the order: mask, tails, online softmax, splits, memory."""
    if not bool(dense.allowed.all()):
        for value in SENTINELS:
            leaking = torch.where(dense.allowed, dense.s, value)
            words = f"masked scores are {value:g}, not -inf"
            yield Hypothesis("mask leak", words, partial(dense.answer, leaking))
    yield from _of_tails(dense)
    for tile in TILES:
        if tile < dense.case.k_len:
            yield from _of_rescaling(dense, tile)
    yield from _of_splits(dense)
    yield from _of_memory(dense, right)


def _of_tails(dense: Dense) -> Iterator[Hypothesis]:
    case = dense.case
    for tile in TILES:
        more = -case.k_len % tile
        if more:
            words = f"keys past the last, up to a tile of {tile}, are scored 0"
            yield Hypothesis("tail tile", words, partial(_with_tail, dense, more))
    scale = case.softmax_scale
    if case.head_dim % 16:
        words = "features past the head dim hold other numbers, and are multiplied"
        lane = (dense.q[..., :1] @ dense.k[..., :1].transpose(-1, -2)) * scale
        yield dense.if_scores_are("tail tile", words, lambda: dense.s + lane)
    if not any(score.kind == "softcap" for score in case.scores):
        whole = case.head_dim // 8 * 8
        if 0 < whole < case.head_dim:
            words = "features of q and k past the last multiple of 8 are not read"
            yield dense.if_scores_are("tail tile", words, partial(_of_first_lanes, dense, whole))
        for lanes in (16, 32, 64, 128):
            if lanes < case.head_dim:
                words = f"only the first {lanes} features of q and k are multiplied"
                yield dense.if_scores_are("not attention", words, partial(_of_first_lanes, dense, lanes))
    for rows in (*TILES[2:], case.q_len):
        if rows <= case.q_len:
            words = f"the softmax runs over the queries ({rows} at once), not the keys"
            yield Hypothesis("not attention", words, partial(_over_queries, dense, rows))
    for tile in (*TILES, case.k_len):
        if tile <= case.k_len:
            words = f"each weight meets the first row of its tile of {tile} values: no matrix product"
            first = torch.arange(case.k_len, device=dense.v.device) // tile * tile
            yield Hypothesis("not attention", words, partial(_with_values_at, dense, first))


def _of_first_lanes(dense: Dense, lanes: int) -> Tensor:
    product = dense.q[..., :lanes] @ dense.k[..., :lanes].transpose(-1, -2)
    return dense.s - dense.raw + product * dense.case.softmax_scale


def _with_values_at(dense: Dense, keys: Tensor) -> Tensor:
    return dense.answer(v=dense.v[:, :, keys]).out


def _over_queries(dense: Dense, rows: int) -> Tensor:
    weights = [torch.softmax(some, 2).nan_to_num(0.0) for some in dense.masked().split(rows, 2)]
    return torch.cat(weights, 2) @ dense.v


def _with_tail(dense: Dense, more: int) -> Exact:
    s = torch.nn.functional.pad(dense.masked(), (0, more), value=0.0)
    return dense.answer(s, torch.nn.functional.pad(dense.v, (0, 0, 0, more)))


def _of_rescaling(dense: Dense, tile: int) -> Iterator[Hypothesis]:
    """The online softmax (arXiv 2205.14135, algorithm 1) with one rescaling wrong."""
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

    def merged(change: Callable[[Tensor], Tensor], base: float = 1.0) -> Tensor:
        outs = [parts()[0][0], *(change(out) for out, _ in parts()[1:])]
        lse = torch.stack([lse for _, lse in parts()]) * base
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
        ("the partial results of batch row 0 are merged", lambda: merged(lambda x: x[:1].expand_as(x))),
        ("the partial results of the next head are merged", lambda: merged(lambda x: x.roll(1, 1))),
        ("the partial results of the head before are merged", lambda: merged(lambda x: x.roll(-1, 1))),
    )
    for words, make in made_of:
        yield Hypothesis("split merge", f"{words} {splits}", make)


def ignoring_strides(x: Tensor) -> Tensor:
    """What a kernel reads that takes x for contiguous: its storage from the first element on."""
    held = x.untyped_storage().nbytes() // x.element_size()
    flat = x.as_strided((held,), (1,), 0)
    return flat[(torch.arange(x.numel(), device=x.device) + x.storage_offset()) % held].view(x.shape)


def _of_memory(dense: Dense, right: Exact) -> Iterator[Hypothesis]:
    """The right numbers at the wrong places, in the inputs or in out."""
    case, inputs = dense.case, dense.inputs

    def on(q: Tensor | None = None, k: Tensor | None = None, v: Tensor | None = None) -> Exact:
        q = dense.q if q is None else q.double()
        k = dense.k if k is None else k.double().repeat_interleave(case.group, 1)
        v = dense.v if v is None else v.double().repeat_interleave(case.group, 1)
        return dense.answer(dense.masked(q @ k.transpose(-1, -2) * case.softmax_scale), v)

    def without_strides(name: str) -> Exact:
        return on(**{name: ignoring_strides(getattr(inputs, name))})

    def on_keys(at: Tensor) -> Exact:
        return on(k=inputs.k[:, :, at], v=inputs.v[:, :, at])

    if not case.scores:
        for name in ("q", "k", "v"):
            if not getattr(inputs, name).is_contiguous():
                words = f"{name}'s strides are ignored: it is read as if it were contiguous"
                yield Hypothesis("layout", words, partial(without_strides, name))
        for page in TILES:
            tail = case.k_len // page * page
            if 0 < tail < case.k_len:
                at = torch.arange(case.k_len, device=dense.s.device)
                at = torch.where(at < tail, at, at - tail)
                words = f"the keys past {tail} are those of another page of {page}"
                yield Hypothesis("layout", words, partial(on_keys, at))
        if case.k_len > 1 << 15:
            at = torch.arange(case.k_len, device=dense.s.device) % (1 << 15)
            words = "key indices wrap at 32,768 (16 bits)"
            yield Hypothesis("missing keys", words, partial(on_keys, at))
    if case.v_dim != case.head_dim:
        flat = inputs.v.flatten(2)
        at = torch.arange(case.k_len, device=flat.device)[:, None] * case.head_dim
        at = (at + torch.arange(case.v_dim, device=flat.device)) % flat.shape[2]
        words = "rows of V are taken for head_dim features long, not v_dim"
        values = flat[:, :, at].double().repeat_interleave(case.group, 1)
        yield Hypothesis("layout", words, lambda: dense.answer(v=values))
    out = right.out
    if case.q_heads == case.q_len:
        yield Hypothesis("layout", "heads and rows of out are swapped", lambda: out.transpose(1, 2))
    words = "out is [B, S, H, D] in memory, taken for [B, H, S, D]"
    yield Hypothesis("layout", words, lambda: out.transpose(1, 2).reshape(out.shape))
    yield Hypothesis(
        "layout", "all axes of out are reversed", lambda: out.permute(3, 2, 1, 0).reshape(out.shape)
    )
    if case.q_heads > 1:
        yield Hypothesis("layout", "heads of out are in reverse order", lambda: out.flip(1))
