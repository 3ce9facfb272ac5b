"""Hypotheses of one leaf of a mask, changed as bugs of its kind do."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attnbench.faults.dense import TILES
from attnbench.faults.mask_reads import Change
from attnbench.faults.packed import of_documents, of_padding
from attnbench.faults.places import Places, pairs_of
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


def changed_leaf(leaf: Mask, case: Case, device: torch.device) -> Iterator[Change]:
    """A leaf, changed as bugs of its kind do."""
    at = Places(case, device)
    yield "mask ignored", f"the part `{leaf}` of the mask is ignored", at.where(at.j >= 0)
    if isinstance(leaf, Causal):
        yield from _of_causal(leaf, at)
    elif isinstance(leaf, SlidingWindow):
        yield from _of_window(leaf, at)
    elif isinstance(leaf, Padding):
        yield from of_padding(leaf, at)
    elif isinstance(leaf, Documents):
        yield from of_documents(leaf, at)
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


def _of_causal(leaf: Causal, at: Places) -> Iterator[Change]:
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


def _of_window(leaf: SlidingWindow, at: Places) -> Iterator[Change]:
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
    if left is not None and at.case.k_len > at.case.q_len:
        words = "the window is not applied to keys of the cache (before k_len - q_len)"
        high = (j >= 0) if right is None else (j <= p + right)
        in_cache = j < at.case.k_len - at.case.q_len
        yield "mask ignored", words, at.where(((j >= p - left) | in_cache) & high)
        words = "the window is not applied to new keys (from k_len - q_len on)"
        yield "mask ignored", words, at.where(((j >= p - left) & high) | ~in_cache)
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
