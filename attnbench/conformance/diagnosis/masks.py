"""Hypotheses of a wrong mask: each leaf changed as bugs of its kind do, and the whole read wrongly as a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.causes import Hypothesis
from attnbench.conformance.diagnosis.dense import TILES, Dense
from attnbench.judge.oracle import Exact
from attnbench.problem import (
    BlockSparse,
    Case,
    Causal,
    Dilated,
    Documents,
    Explicit,
    Full,
    GlobalTokens,
    Mask,
    Padding,
    PrefixLM,
    SlidingWindow,
)
from attnbench.problem.masks import And, Not, Or

Change = tuple[str, str, Callable[[], Tensor]]  # cause, words, the changed leaf's pairs


def of_mask(dense: Dense) -> Iterator[Hypothesis]:
    """Other masks in place of the case's, each with its exact out and LSE."""
    for cause, words, pairs in other_masks(dense):
        yield Hypothesis(cause, words, partial(_under, dense, pairs))


def _under(dense: Dense, pairs: Callable[[], Tensor]) -> Exact:
    return dense.answer(dense.masked(allowed=pairs()))


def other_masks(dense: Dense) -> Iterator[Change]:
    """Cause, words and pairs [B, H, Q, K] of other masks, the more particular ones first."""
    case, allowed = dense.case, dense.allowed
    if isinstance(case.mask, Full):
        triangle = torch.ones_like(allowed).tril(case.k_len - case.q_len)
        yield "mask ignored", "a causal mask is applied, and the case has none", lambda: triangle
    else:
        yield "mask ignored", "the mask is ignored", lambda: torch.ones_like(allowed)
        for number, leaf in enumerate(_leaves(case.mask)):
            for cause, words, pairs in _changed_leaf(leaf, case, allowed.device):
                yield cause, words, partial(_with_leaf, case.mask, case, allowed.device, number, pairs)
        yield from _of_table(dense)
    yield from _of_missing_keys(dense)


def _pairs(mask: Mask, case: Case, device: torch.device) -> Tensor:
    made = mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len, device=device)
    return made.expand(case.batch, case.q_heads, case.q_len, case.k_len)


def _leaves(mask: Mask) -> list[Mask]:
    if isinstance(mask, And | Or):
        return [*_leaves(mask.left), *_leaves(mask.right)]
    return _leaves(mask.mask) if isinstance(mask, Not) else [mask]


def _with_leaf(
    mask: Mask, case: Case, device: torch.device, number: int, pairs: Callable[[], Tensor]
) -> Tensor:
    """The mask's pairs, with other pairs for leaf `number`, counted from the left."""
    if isinstance(mask, And | Or):
        left = len(_leaves(mask.left))
        a = _with_leaf(mask.left, case, device, number, pairs)
        b = _with_leaf(mask.right, case, device, number - left, pairs)
        return a & b if isinstance(mask, And) else a | b
    if isinstance(mask, Not):
        return ~_with_leaf(mask.mask, case, device, number, pairs)
    return pairs() if number == 0 else _pairs(mask, case, device)


def _changed_leaf(leaf: Mask, case: Case, device: torch.device) -> Iterator[Change]:
    """A leaf, changed as bugs of its kind do."""
    i = torch.arange(case.q_len, device=device)[:, None]
    j = torch.arange(case.k_len, device=device)
    p = i + case.k_len - case.q_len

    def of(mask: Mask) -> Callable[[], Tensor]:
        return lambda: _pairs(mask, case, device)

    def where(pairs: Tensor) -> Callable[[], Tensor]:
        return lambda: pairs.expand(case.batch, case.q_heads, case.q_len, case.k_len)

    yield "mask ignored", f"the part `{leaf}` of the mask is ignored", where(j >= 0)
    if isinstance(leaf, Causal):
        at, other = (i, p) if leaf.align == "top_left" else (p, i)
        words = "the causal mask is aligned top-left instead of bottom-right (or the other way round)"
        yield "mask alignment", words, where(j <= other)
        for more, words in (
            (-1, "one key too few (strict, off by one)"),
            (1, "one key too many (off by one)"),
        ):
            yield "mask boundary", f"at its diagonal the mask allows {words}", where(j <= at + more)
        for tile in (4, 8, *TILES):
            rounded = torch.div(i, tile, rounding_mode="floor") * tile + tile - 1
            words = f"the diagonal is rounded up to {tile} queries"
            yield "mask boundary", words, where(j <= rounded + (at - i))
        for tile in TILES:
            if tile < case.q_len:
                words = f"the first query of each tile of {tile} does not attend itself (the mask's edge)"
                yield "mask boundary", words, where((j <= at) & ~((j == at) & (i % tile == 0) & (i > 0)))
    elif isinstance(leaf, SlidingWindow):
        left, right = leaf.left, leaf.right
        for more, words in ((-1, "too short"), (1, "too long")):
            if left is not None:
                wider = SlidingWindow(max(0, left + more), right)
                yield "mask boundary", f"the window is one key {words} on the left", of(wider)
            if right is not None:
                wider = SlidingWindow(left, max(0, right + more))
                yield "mask boundary", f"the window is one key {words} on the right", of(wider)
            if left is not None and right is not None:
                wider = SlidingWindow(max(0, left + more), max(0, right + more))
                yield "mask boundary", f"the window is one key {words} on both sides", of(wider)
        yield "mask ignored", "the right side of the window is ignored", of(SlidingWindow(left, None))
        yield "mask ignored", "the left side of the window is ignored", of(SlidingWindow(None, right))
    elif isinstance(leaf, Padding):
        for more, words in ((-1, "minus one"), (1, "plus one")):
            lengths = [min(max(0, n + more), case.k_len) for n in leaf.lengths]
            yield (
                "mask boundary",
                f"the key length is read as itself {words}",
                of(Padding(lengths, leaf.side)),
            )
        first = [leaf.lengths[0]] * case.batch
        yield (
            "mask broadcast",
            "every batch row has the key length of batch row 0",
            of(Padding(first, leaf.side)),
        )
        side: Literal["left", "right"] = "left" if leaf.side == "right" else "right"
        yield "mask alignment", f"keys are padded on the {side}", of(Padding(leaf.lengths, side))
    elif isinstance(leaf, Documents):
        words = "an empty document takes a token"
        lists = [_none_empty(lengths, case.q_len) for lengths in leaf.lists]
        yield "mask boundary", words, of(Documents(lists if len(lists) > 1 else lists[0]))
        yield (
            "mask broadcast",
            "every batch row has the documents of batch row 0",
            of(Documents(leaf.lists[0])),
        )
    elif isinstance(leaf, PrefixLM):
        for n in (leaf.n - 1, leaf.n + 1):
            yield "mask boundary", f"the prefix is {n} keys long", of(PrefixLM(max(0, n)))
    elif isinstance(leaf, GlobalTokens):
        yield "mask shape", "global tokens are seen but do not see", where(j < leaf.n)
        yield "mask shape", "global tokens see but are not seen", where((p >= 0) & (p < leaf.n) & (j >= 0))
    elif isinstance(leaf, Dilated):
        yield (
            "mask alignment",
            "the dilation is counted from the first key",
            where((j % leaf.s == 0) & (i >= 0)),
        )
    elif isinstance(leaf, BlockSparse | Explicit):
        yield from _of_transposed(leaf, case, device)


def _of_transposed(leaf: Mask, case: Case, device: torch.device) -> Iterator[Change]:
    rows, columns = (torch.arange(n, device=device) for n in (case.q_len, case.k_len))
    what = "block layout" if isinstance(leaf, BlockSparse) else "mask"

    def transposed() -> Tensor:
        pairs = _pairs(leaf, case, device)
        some = pairs[
            :, :, columns.clamp_max(case.q_len - 1)[None, :], rows.clamp_max(case.k_len - 1)[:, None]
        ]
        return some.expand(case.batch, case.q_heads, case.q_len, case.k_len)

    yield "mask shape", f"the {what} is transposed", transposed
    yield "mask shape", f"the {what} is inverted (True taken for masked)", lambda: ~_pairs(leaf, case, device)


def _none_empty(lengths: tuple[int, ...], total: int) -> tuple[int, ...]:
    longer = [max(1, n) for n in lengths]
    while sum(longer) > total and max(longer) > 1:
        longer[longer.index(max(longer))] -= 1
    return tuple(longer)


def _of_table(dense: Dense) -> Iterator[Change]:
    """The whole mask read wrongly as a table [B, H, Q, K]."""
    case, allowed = dense.case, dense.allowed

    def by(cause: str, words: str, pairs: Tensor) -> Change:
        return cause, words, lambda: pairs

    yield by("mask shape", "the mask is inverted (True taken for masked)", ~allowed)
    if case.q_len == case.k_len:
        yield by("mask shape", "the mask is transposed", allowed.transpose(-1, -2))
    if case.batch > 1:
        yield by(
            "mask broadcast", "every batch row uses the mask of batch row 0", allowed[:1].expand_as(allowed)
        )
        flat = allowed.transpose(0, 1).reshape(allowed.shape)
        words = "the mask is repeated in the wrong order over batch and heads"
        yield by("mask broadcast", words, flat)
        heads = torch.arange(case.q_heads, device=allowed.device)
        flat_index = torch.arange(case.batch, device=allowed.device)[:, None] * case.q_heads + heads
        yield by("mask broadcast", words, allowed[flat_index % case.batch, heads.expand_as(flat_index)])
    if case.q_heads > 1:
        first = allowed[:, :1].expand_as(allowed)
        yield by("mask broadcast", "every head uses the mask of head 0", first)
    shift = case.k_len - case.q_len
    if shift:
        for by_keys in (shift, -shift):
            source = torch.arange(case.k_len, device=allowed.device) + by_keys
            inside = (source >= 0) & (source < case.k_len)
            moved = torch.where(inside, allowed[..., source.clamp(0, case.k_len - 1)], False)
            yield by("mask alignment", "the mask is aligned to the other corner", moved)
    for tile in (4, *TILES):
        if tile < max(case.q_len, case.k_len):
            words = f"the mask is applied at the granularity of {tile} tokens"
            yield by("mask shape", words, _coarse(allowed, tile, tile))
    for rows in TILES[2:4]:
        for columns in TILES[1:4]:
            if rows != columns:
                words = f"the mask is applied to whole tiles of {rows} x {columns}"
                yield by("mask shape", words, _coarse(allowed, rows, columns))
    if not bool(allowed.any(-1).all()):
        filled = allowed | ~allowed.any(-1, keepdim=True)
        yield by("empty rows", "a row without a key gives the mean of V instead of 0", filled)
        words = "masked scores are finite (-1e4, finfo.min), so a row without a key sees them all"
        yield by("mask leak", words, filled)


def _coarse(allowed: Tensor, rows: int, columns: int) -> Tensor:
    q_len, k_len = allowed.shape[-2:]
    more = (0, -k_len % columns, 0, -q_len % rows)
    blocks = torch.nn.functional.pad(allowed.float(), more)
    blocks = torch.nn.functional.max_pool2d(blocks, (rows, columns))
    grown = blocks.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return grown[..., :q_len, :k_len] > 0


def _of_missing_keys(dense: Dense) -> Iterator[Change]:
    """Keys that are never read, whatever the mask."""
    case, allowed = dense.case, dense.allowed
    k_len, q_len = case.k_len, case.q_len
    j = torch.arange(k_len, device=allowed.device)
    i = torch.arange(q_len, device=allowed.device)[:, None]

    def only(words: str, kept: Tensor, cause: str = "missing keys") -> Change:
        return cause, words, lambda: allowed & kept

    for tile in TILES:
        if tile < k_len and k_len % tile:
            words = f"the last, ragged tile of {tile} keys is left out"
            yield only(words, j < k_len // tile * tile)
            yield only(words, j < k_len // tile * tile, "tail tile")
    ends = {-(-k_len // tile) - 1 for tile in TILES} | {0}
    for tile in TILES:
        tiles = -(-k_len // tile)
        for splits in (2, 3, 4, 8):
            start = -(-tiles // splits) * (splits - 1) * tile
            start = (
                start if start < k_len else (tiles - 1) // -(-tiles // splits) * -(-tiles // splits) * tile
            )
            if 0 < start < k_len and start not in ends:
                ends.add(start)
                yield only(f"the keys from {start} on are left out (a split or tile is dropped)", j < start)
        if tile < k_len:
            words = f"only the last {tile} keys count (a ring buffer, or earlier tiles are lost)"
            yield only(words, j >= k_len - tile)
            yield only(words, j >= (k_len - tile) // TILES[0] * TILES[0])
    yield only("the last key is left out (key length off by one)", j < k_len - 1)
    if q_len > 16 and isinstance(case.mask, Causal | And):
        p = i + k_len - q_len
        for rows in TILES:
            if q_len % rows:
                for columns in TILES:
                    diagonal = torch.div(j, columns, rounding_mode="floor") == torch.div(
                        p[-1], columns, rounding_mode="floor"
                    )
                    words = f"the last, ragged {rows} queries skip their last tile of {columns} keys"
                    yield only(words, ~(diagonal & (i >= q_len // rows * rows)))
