"""Faults of lengths: padding and packed documents whose ends, batch rows or sides are wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from attnbench.faults.dense import TILES
from attnbench.faults.mask_reads import Change
from attnbench.faults.places import Places
from attnbench.problem import Documents, Padding


def of_padding(leaf: Padding, at: Places) -> Iterator[Change]:
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


def of_documents(leaf: Documents, at: Places) -> Iterator[Change]:
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


def _none_empty(lengths: tuple[int, ...], total: int) -> tuple[int, ...]:
    longer = [max(1, n) for n in lengths]
    while sum(longer) > total and max(longer) > 1:
        longer[longer.index(max(longer))] -= 1
    return tuple(longer)
