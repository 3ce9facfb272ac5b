"""Hypotheses of a mask read wrongly as a table [B, H, Q, K], and of keys that are never read."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from attnbench.faults.dense import TILES, Dense
from attnbench.judge.oracle import Exact, log_sum_exp, probabilities
from attnbench.problem import Causal
from attnbench.problem.masks import And

Change = tuple[str, str, Callable[[], Tensor]]  # cause, words, the changed pairs


def row_sums_of_all(dense: Dense) -> Exact:
    """out and LSE if weights are masked after a softmax over all keys."""
    _, lse = log_sum_exp(dense.s, dense.sink)
    p = probabilities(dense.s, lse) * dense.allowed[:, :, dense.rows]
    return Exact(p @ dense.v, lse)


def of_table(dense: Dense) -> Iterator[Change]:
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
        yield by("mask broadcast", "batch rows use the mask of the next batch row", allowed.roll(-1, 0))
        yield by("mask broadcast", "batch rows use the mask of the batch row before", allowed.roll(1, 0))
    if case.q_heads > 1:
        first = allowed[:, :1].expand_as(allowed)
        yield by("mask broadcast", "every head uses the mask of head 0", first)
        if case.group > 1:
            group = torch.arange(case.q_heads, device=allowed.device) // case.group
            words = "the mask is read by the key head's number, not the query head's"
            yield by("mask broadcast", words, allowed[:, group])
        yield by("mask broadcast", "heads use the mask of the next head", allowed.roll(-1, 1))
        halves = torch.arange(case.q_heads, device=allowed.device) // 2
        yield by("mask broadcast", "head h uses the mask of head h // 2", allowed[:, halves])
    flat = allowed.flatten(2)
    rows = torch.arange(case.q_len, device=allowed.device)[:, None]
    for multiple in (8, 16, 32, 64):
        stride = -(-case.k_len // multiple) * multiple
        if stride != case.k_len and case.q_len > 1:
            words = f"the mask is read with rows padded to a multiple of {multiple} keys (its row stride is ignored)"
            at = (rows * stride + torch.arange(case.k_len, device=allowed.device)) % flat.shape[2]
            yield by("mask shape", words, flat[:, :, at])
    yield from _of_bits(allowed)
    words = "the mask of query 0 is used for every query"
    yield by("mask broadcast", words, allowed[:, :, :1].expand_as(allowed))
    words = "the mask of the last query is used for every query"
    yield by("mask broadcast", words, allowed[:, :, -1:].expand_as(allowed))
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
    for height in TILES[2:4]:
        for width in TILES[1:4]:
            if height != width:
                words = f"the mask is applied to whole tiles of {height} x {width}"
                yield by("mask shape", words, _coarse(allowed, height, width))
    if not bool(allowed.any(-1).all()):
        filled = allowed | ~allowed.any(-1, keepdim=True)
        yield by("empty rows", "a row without a key gives the mean of V instead of 0", filled)
        words = "masked scores are finite (-1e4, finfo.min), so a row without a key sees them all"
        yield by("mask leak", words, filled)


def _of_bits(allowed: Tensor) -> Iterator[Change]:
    """A mask packed into bits, read in another order or from other places."""
    q_len, k_len = allowed.shape[-2:]
    keys = torch.arange(k_len, device=allowed.device)
    flat = allowed.flatten(2)
    places = torch.arange(q_len * k_len, device=allowed.device)

    def at(bits: Tensor, places: Tensor) -> Tensor:
        """The bits [B, H, ..., N] at these places; past the last they are 0."""
        return torch.nn.functional.pad(bits, (0, 1))[..., places.clamp_max(bits.shape[-1])]

    for word in (8, 32, 64):
        words = f"the bits of the packed mask are in reverse order within words of {word}"
        reverse = lambda x, n=word: x // n * n + n - 1 - x % n  # noqa: E731
        yield "mask shape", words, lambda x=reverse(keys): at(allowed, x)  # type: ignore[misc]
        if k_len % word:
            # Words that hold the end of one row and the start of the next.
            yield "mask shape", words, lambda x=reverse(places): at(flat, x).view_as(allowed)  # type: ignore[misc]
            words = (
                f"rows of the packed mask start at a whole word of {word} bits, and are read without padding"
            )
            yield "mask shape", words, lambda n=word: _unpadded(allowed, n)  # type: ignore[misc]
        if len(places) % word and flat.shape[:2].numel() > 1:
            words = f"the packed mask of each head starts at a whole word of {word} bits, and is read without padding"
            yield "mask shape", words, lambda n=word: _unpadded(flat.flatten(0, 1)[None], n).view_as(allowed)  # type: ignore[misc]
    if k_len > 32:
        words = "keys past 32 of each 64 read the mask bit of the key 32 before theirs (1 << n in 32 bits)"
        yield "mask shape", words, lambda: allowed[..., keys // 64 * 64 + keys % 32]


def _unpadded(bits: Tensor, word: int) -> Tensor:
    """Rows [..., R, N], each padded to whole words, read as if they followed each other without padding."""
    rows, length = bits.shape[-2:]
    padded = torch.nn.functional.pad(bits, (0, -length % word)).flatten(-2)
    return padded[..., : rows * length].view(bits.shape)


def _coarse(allowed: Tensor, rows: int, columns: int) -> Tensor:
    q_len, k_len = allowed.shape[-2:]
    more = (0, -k_len % columns, 0, -q_len % rows)
    blocks = torch.nn.functional.pad(allowed.float(), more)
    blocks = torch.nn.functional.max_pool2d(blocks, (rows, columns))
    grown = blocks.repeat_interleave(rows, -2).repeat_interleave(columns, -1)
    return grown[..., :q_len, :k_len] > 0


def of_missing_keys(dense: Dense) -> Iterator[Change]:
    """Keys that are never read, whatever the mask."""
    case, allowed = dense.case, dense.allowed
    k_len, q_len = case.k_len, case.q_len
    j = torch.arange(k_len, device=allowed.device)
    i = torch.arange(q_len, device=allowed.device)[:, None]

    def only(words: str, kept: Tensor, cause: str = "missing keys") -> Change:
        return cause, words, lambda: allowed & kept

    yield only("the last key is left out (key length off by one)", j < k_len - 1)
    yield only("the first key is left out", j > 0)
    if k_len > q_len > 1:
        yield only("the loop over keys ends at q_len: the keys from there on are left out", j < q_len)
        yield only("keys of the cache, before k_len - q_len, are left out", j >= k_len - q_len)
    for tile in TILES:
        if tile < k_len and k_len % tile:
            words = f"the last, ragged tile of {tile} keys is left out"
            yield only(words, j < k_len // tile * tile)
            yield only(words, j < k_len // tile * tile, "tail tile")
    for splits in (2, 3, 4, 8):
        if k_len > splits and -(-k_len // splits) not in TILES:
            start = -(-k_len // splits) * (splits - 1)
            yield only(
                f"the keys of the last of {splits} equal splits are left out (from {start} on)", j < start
            )
        if splits < k_len and k_len % splits and k_len // splits not in TILES:
            words = f"the keys past {splits} splits of k_len // {splits} are left out"
            yield only(words, j < k_len // splits * splits)
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
    for tile in TILES:
        if tile < k_len:
            yield only(f"the first tile of {tile} keys is left out", j >= tile)
            yield only(f"only the first {tile} keys are read", j < tile)
        if 2 * tile < k_len:
            yield only(f"the second tile of {tile} keys is left out", (j < tile) | (j >= 2 * tile))
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
