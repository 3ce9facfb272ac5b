"""Hypotheses of one leaf of a mask, changed as bugs of its kind do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from attnbench.faults.dense import TILES
from attnbench.faults.mask_reads import Change
from attnbench.problem import (
    BlockSparse,
    Case,
    Causal,
    Dilated,
    Documents,
    Explicit,
    GlobalTokens,
    Mask,
    Padding,
    PrefixLM,
    SlidingWindow,
)


def pairs_of(mask: Mask, case: Case, device: torch.device) -> Tensor:
    """The mask's pairs, bool [B, H, Q, K]."""
    made = mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len, device=device)
    return made.expand(case.batch, case.q_heads, case.q_len, case.k_len)


class _Places:
    """Queries i [Q, 1], their own places among the keys p [Q, 1], and keys j [K] of a case."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.i = torch.arange(case.q_len, device=device)[:, None]
        self.j = torch.arange(case.k_len, device=device)
        self.p = self.i + case.k_len - case.q_len

    def of(self, mask: Mask) -> Callable[[], Tensor]:
        return lambda: pairs_of(mask, self.case, self.device)

    def where(self, pairs: Tensor) -> Callable[[], Tensor]:
        case = self.case
        return lambda: pairs.expand(case.batch, case.q_heads, case.q_len, case.k_len)


def changed_leaf(leaf: Mask, case: Case, device: torch.device) -> Iterator[Change]:
    """A leaf, changed as bugs of its kind do."""
    at = _Places(case, device)
    yield "mask ignored", f"the part `{leaf}` of the mask is ignored", at.where(at.j >= 0)
    if isinstance(leaf, Causal):
        yield from _of_causal(leaf, at)
    elif isinstance(leaf, SlidingWindow):
        yield from _of_window(leaf, at)
    elif isinstance(leaf, Padding):
        yield from _of_padding(leaf, at)
    elif isinstance(leaf, Documents):
        yield from _of_documents(leaf, at)
    elif isinstance(leaf, PrefixLM):
        for n in (leaf.n - 1, leaf.n + 1):
            yield "mask boundary", f"the prefix is {n} keys long", at.of(PrefixLM(max(0, n)))
        words = "the prefix is ignored: the mask is causal from the first key on"
        yield "mask ignored", words, at.where(at.j <= at.p)
        words = "the prefix mask is aligned top-left"
        yield "mask alignment", words, at.where((at.j <= at.i) | (at.j < leaf.n))
        words = "queries in the prefix alone see it whole"
        yield "mask shape", words, at.where((at.j <= at.p) | ((at.j < leaf.n) & (at.p < leaf.n)))
        words = "beyond the prefix keys are masked"
        yield "mask shape", words, at.where((at.j < leaf.n) & (at.i >= 0))
    elif isinstance(leaf, GlobalTokens):
        yield "mask shape", "global tokens are seen but do not see", at.where(at.j < leaf.n)
        words = "global tokens see but are not seen"
        yield "mask shape", words, at.where((at.p >= 0) & (at.p < leaf.n) & (at.j >= 0))
        words = "global tokens are counted from the top-left corner"
        yield "mask alignment", words, at.where((at.j < leaf.n) | (at.i < leaf.n))
        for n in (leaf.n - 1, leaf.n + 1):
            yield "mask boundary", f"there are {n} global tokens", at.of(GlobalTokens(max(0, n)))
    elif isinstance(leaf, Dilated):
        words = "the dilation is counted from the first key"
        yield "mask alignment", words, at.where((at.j % leaf.s == 0) & (at.i >= 0))
        words = "the dilation is counted from the top-left corner"
        yield "mask alignment", words, at.where((at.i - at.j) % leaf.s == 0)
        for s in (leaf.s - 1, leaf.s + 1):
            yield "mask shape", f"the dilation's step is {s}", at.where((at.p - at.j) % max(1, s) == 0)
    elif isinstance(leaf, BlockSparse | Explicit):
        yield from _of_transposed(leaf, case, device)
    if isinstance(leaf, BlockSparse):
        layout = torch.tensor(leaf.layout, device=device).bool()
        layout = layout if layout.ndim == 3 else layout[None]
        for block in (leaf.block // 2, leaf.block * 2, 32, 64, 128):
            if block != leaf.block:
                rows = (at.i // block).clamp_max(layout.shape[1] - 1)
                columns = (at.j // block).clamp_max(layout.shape[2] - 1)
                words = f"the blocks of the layout are taken for {block} tokens wide"
                yield "mask shape", words, at.where(layout[:, rows, columns])


def _of_causal(leaf: Causal, at: _Places) -> Iterator[Change]:
    i, j, p, q_len, k_len = at.i, at.j, at.p, at.case.q_len, at.case.k_len
    own, other = (i, p) if leaf.align == "top_left" else (p, i)
    words = "the causal mask is aligned top-left instead of bottom-right (or the other way round)"
    yield "mask alignment", words, at.where(j <= other)
    for more, words in (
        (-1, "one key too few (strict, off by one)"),
        (1, "one key too many (off by one)"),
    ):
        yield "mask boundary", f"at its diagonal the mask allows {words}", at.where(j <= own + more)
    yield "mask shape", "the causal mask is the other triangle", at.where(j >= own)
    for tile in (4, 8, *TILES):
        rounded = i // tile * tile + tile - 1
        words = f"the diagonal is rounded up to {tile} queries"
        yield "mask boundary", words, at.where(j <= rounded + (own - i))
    for tile in TILES:
        if tile < q_len:
            words = f"the first query of each tile of {tile} does not attend itself (the mask's edge)"
            yield "mask boundary", words, at.where((j <= own) & ~((j == own) & (i % tile == 0) & (i > 0)))
            words = f"the diagonal tile of {tile} keys is left out, but for the first one"
            yield "missing keys", words, at.where((j <= own) & ((j < own // tile * tile) | (own < tile)))
            words = f"the diagonal tile of {tile} keys is left out"
            yield "missing keys", words, at.where((j <= own) & (j < own // tile * tile))
            words = f"the diagonal tile of {tile} keys is not masked"
            yield "mask boundary", words, at.where(j < own // tile * tile + tile)
    if k_len > q_len:
        words = "the loop over keys starts at k_len - q_len: the keys before it are left out"
        yield "missing keys", words, at.where((j <= own) & (j >= k_len - q_len))
        for tile in TILES:
            words = (
                f"the loop over tiles of keys ends at the query's own tile of {tile}, without k_len - q_len"
            )
            yield "missing keys", words, at.where((j <= own) & (j < (i // tile + 1) * tile))
    if at.case.group > 1:
        group = at.case.group
        head = torch.arange(at.case.q_heads, device=at.device)[:, None, None]
        words = "the causal row is that of the packed group: row * group + head (GQA packing)"
        yield "mask alignment", words, at.where(j <= i * group + head % group + (own - i))
        yield "mask alignment", words, at.where(j <= (i + head % group * q_len) // group + (own - i))


def _of_window(leaf: SlidingWindow, at: _Places) -> Iterator[Change]:
    left, right, i, j, p = leaf.left, leaf.right, at.i, at.j, at.p

    def sides(left: int | None, right: int | None) -> Callable[[], Tensor]:
        # A side below 0 leaves keys out, as far as the query's own.
        low = j >= 0 if left is None else j >= p - left
        return at.where(low & ((j >= 0) if right is None else (j <= p + right)))

    for more, words in ((-1, "too short"), (1, "too long")):
        wider_left = left if left is None else left + more
        wider_right = right if right is None else right + more
        if left is not None:
            yield "mask boundary", f"the window is one key {words} on the left", sides(wider_left, right)
        if right is not None:
            yield "mask boundary", f"the window is one key {words} on the right", sides(left, wider_right)
        if left is not None and right is not None:
            words = f"the window is one key {words} on both sides"
            yield "mask boundary", words, sides(wider_left, wider_right)
    if left is not None and right is not None:
        words = "the window is moved by one key"
        yield "mask boundary", words, sides(left - 1, right + 1)
        yield "mask boundary", words, sides(left + 1, right - 1)
    yield "mask ignored", "the right side of the window is ignored", sides(left, None)
    yield "mask ignored", "the left side of the window is ignored", sides(None, right)
    yield "mask boundary", "the right side of the window is 0, not its own", sides(left, 0)
    yield "mask boundary", "the left side of the window is 0, not its own", sides(0, right)
    yield "mask boundary", "the window has its left side on the right as well", sides(left, left)
    yield "mask boundary", "the window has its right side on the left as well", sides(right, right)
    yield "mask boundary", "the sides of the window are swapped", sides(right, left)
    for side, what in ((-1, "-1 keys"), (0, "no key")):
        if left is None or right is None:
            words = f"an unlimited side of the window is taken for {what}"
            yield (
                "mask boundary",
                words,
                sides(side if left is None else left, side if right is None else right),
            )
    halves = [None if side is None else side // 2 for side in (left, right)]
    yield "mask boundary", "the window is half as wide: its sides are halved", sides(*halves)
    doubled = [None if side is None else side * 2 for side in (left, right)]
    yield "mask boundary", "the window is twice as wide: its sides are doubled", sides(*doubled)
    words = "the window's width is taken for both sides together: half of it on each"
    total = (left or 0) + (right or 0)
    yield "mask boundary", words, sides(total // 2, total // 2)
    low = (j >= 0) if left is None else (j >= i - left)
    high = (j >= 0) if right is None else (j <= i + right)
    words = "the window is aligned to the top-left corner (i for i + k_len - q_len)"
    yield "mask alignment", words, at.where(low & high)
    for tile in TILES:
        if tile < at.case.k_len and left is not None:
            words = f"the window's left edge is rounded down to a tile of {tile} keys"
            start = (p - left).clamp_min(0) // tile * tile
            yield "mask boundary", words, at.where((j >= start) & (j <= p + (right or 0)))
            words = f"the window's left edge is rounded up to a tile of {tile} keys"
            start = -(-(p - left).clamp_min(0) // tile) * tile
            yield "missing keys", words, at.where((j >= start) & (j <= p + (right or 0)))
    if left is not None:
        for width in {left + 1, left, total + 1}:
            if width > 0:
                words = "the window is chunks of its width, each attending itself alone"
                chunk = (p.clamp_min(0) // width == j // width) & (p >= 0)
                yield "mask shape", words, at.where(chunk & (j <= p + (right or 0)))
                yield "mask shape", words, at.where(chunk)


def _of_padding(leaf: Padding, at: _Places) -> Iterator[Change]:
    case = at.case
    lengths = list(leaf.lengths) if len(leaf.lengths) == case.batch else list(leaf.lengths) * case.batch

    def of(cause: str, words: str, lengths: list[int]) -> Change:
        return cause, words, at.of(Padding([min(max(0, n), case.k_len) for n in lengths], leaf.side))

    for more, words in ((-1, "minus one"), (1, "plus one")):
        yield of("mask boundary", f"the key length is read as itself {words}", [n + more for n in lengths])
    first, last = lengths[:1] * case.batch, lengths[-1:] * case.batch
    yield of("mask broadcast", "every batch row has the key length of batch row 0", first)
    longest = [max(lengths)] * case.batch
    yield of("mask broadcast", "every batch row has the longest key length (max_seqlen)", longest)
    yield of("mask broadcast", "every batch row has the key length of the last batch row", last)
    before = [*lengths[-1:], *lengths[:-1]]
    yield of("mask broadcast", "batch rows have the key length of the batch row before", before)
    yield of(
        "mask broadcast", "batch rows have the key length of the next batch row", [*lengths[1:], lengths[0]]
    )
    sums = [sum(lengths[: n + 1]) for n in range(len(lengths))]
    yield of("mask broadcast", "the key length is the sum of those up to the batch row (cu_seqlens)", sums)
    for tile in (8, *TILES):
        whole = [-(-n // tile) * tile for n in lengths]
        yield of("tail tile", f"the key length is rounded up to a tile of {tile}", whole)
        cut = [n // tile * tile for n in lengths]
        yield of("tail tile", f"the key length is rounded down to a tile of {tile}", cut)
    empty = [n or case.k_len for n in lengths]
    yield of("empty rows", "a key length of 0 is taken for no limit", empty)
    side: Literal["left", "right"] = "left" if leaf.side == "right" else "right"
    yield "mask alignment", f"keys are padded on the {side}", at.of(Padding(leaf.lengths, side))
    kept = torch.tensor(lengths, device=at.device)[:, None, None, None]
    rows = at.i < kept if leaf.side == "right" else at.i >= case.q_len - kept
    yield "mask shape", "lengths mask the queries, not the keys", at.where(rows & (at.j >= 0))
    pairs = at.of(leaf)
    yield "mask shape", "lengths mask the queries as well as the keys", lambda: pairs() & rows


def _of_documents(leaf: Documents, at: _Places) -> Iterator[Change]:
    case = at.case
    words = "an empty document takes a token"
    lists = [_none_empty(lengths, case.q_len) for lengths in leaf.lists]
    yield "mask boundary", words, at.of(Documents(lists if len(lists) > 1 else lists[0]))
    words = "every batch row has the documents of batch row 0"
    yield "mask broadcast", words, at.of(Documents(leaf.lists[0]))
    places = torch.arange(max(case.q_len, case.k_len), device=at.device)

    def numbered(shift: int, over: bool) -> Tensor:
        """The document of each place [B, 1, 1, S] if every end is moved by `shift`; -1 past the last one."""
        rows = []
        for lengths in leaf.lists:
            ends = torch.tensor(lengths, device=at.device).cumsum(0) + shift
            number = torch.searchsorted(ends, places, right=True)
            rows.append(number if over else torch.where(places < ends[-1], number, -1))
        return torch.stack(rows)[:, None, None]

    def same(numbers: Tensor) -> Callable[[], Tensor]:
        queries, keys = numbers[..., : case.q_len].transpose(2, 3), numbers[..., : case.k_len]
        return at.where((queries == keys) & (queries >= 0) & (keys >= 0))

    own = numbered(0, False)
    for shift, words in ((1, "takes the first token of the next"), (-1, "loses its last token to the next")):
        moved = numbered(shift, False)
        yield "mask boundary", f"a document {words} (off by one)", same(moved)
        slack = torch.where(own < 0, own, moved)
        yield "mask boundary", f"a document {words} (off by one)", same(slack)
    words = "tokens past the last document are a document of their own"
    yield "mask shape", words, same(numbered(0, True))
    for number in range(2):
        words = f"tokens past document {number} attend each other: its end alone is read"
        yield "mask broadcast", words, same(own.clamp_max(number + 1))
    words = "documents attend the documents before them"
    keys, queries = own[..., : case.k_len], own[..., : case.q_len].transpose(2, 3)
    yield "mask shape", words, at.where((queries >= keys) & (keys >= 0) & (queries >= 0))


def _of_transposed(leaf: Mask, case: Case, device: torch.device) -> Iterator[Change]:
    rows, columns = (torch.arange(n, device=device) for n in (case.q_len, case.k_len))
    what = "block layout" if isinstance(leaf, BlockSparse) else "mask"

    def transposed() -> Tensor:
        pairs = pairs_of(leaf, case, device)
        some = pairs[
            :, :, columns.clamp_max(case.q_len - 1)[None, :], rows.clamp_max(case.k_len - 1)[:, None]
        ]
        return some.expand(case.batch, case.q_heads, case.q_len, case.k_len)

    yield "mask shape", f"the {what} is transposed", transposed
    yield (
        "mask shape",
        f"the {what} is inverted (True taken for masked)",
        lambda: ~pairs_of(leaf, case, device),
    )


def _none_empty(lengths: tuple[int, ...], total: int) -> tuple[int, ...]:
    longer = [max(1, n) for n in lengths]
    while sum(longer) > total and max(longer) > 1:
        longer[longer.index(max(longer))] -= 1
    return tuple(longer)
