"""Hypotheses of inputs read at other places (heads, batch rows, features, strides) and of out stored at others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import TILES, Dense
from attnbench.judge.oracle import Exact

MOST_BYTES = 1 << 28  # of storage that a read without strides copies
Change = Callable[[Tensor], Tensor]  # of k or v, [B, Hkv, K, D], to [B, H, K, D] or [B, Hkv, K, D]


def of_reads(dense: Dense, right: Exact) -> Iterator[Hypothesis]:
    """Heads, batch rows, keys, features and strides, then the axes of out."""
    yield from _of_heads(dense)
    yield from _of_batch_rows(dense)
    yield from _of_keys(dense)
    yield from _of_order(dense)
    yield from _of_features(dense, right)
    yield from _of_strides(dense)
    yield from _of_out(dense, right)


def _read(dense: Dense, cause: str, words: str, change: Change, of: str = "kv") -> Iterator[Hypothesis]:
    """Both of k and v read otherwise, then each alone."""

    def changed(x: Tensor) -> Tensor:
        y = change(x).double()
        return y.repeat_interleave(dense.case.q_heads // y.shape[1], 1)

    k, v = partial(changed, dense.inputs.k), partial(changed, dense.inputs.v)
    yield dense.if_reading(cause, words, k if "k" in of else None, v if "v" in of else None)
    if of == "kv":
        yield dense.if_reading(cause, f"of V alone: {words}", None, v)
        yield dense.if_reading(cause, f"of K alone: {words}", k, None)


def _of_heads(dense: Dense) -> Iterator[Hypothesis]:
    case = dense.case
    h = torch.arange(case.q_heads, device=dense.keys.device)
    kv, group = case.kv_heads, case.group
    right = h // group
    maps = (
        ("key heads are tiled, not interleaved, over query heads (GQA mapping)", h % kv),
        ("every query head reads key head 0 (GQA mapping)", h * 0),
        ("query head h reads key head h // kv_heads, not h // group (GQA mapping)", h // kv),
        ("query head h reads key head h % group (GQA mapping)", h % group),
        ("query heads read the next key head (GQA mapping)", (right + 1) % kv),
        ("query heads read the key head before theirs (GQA mapping)", (right - 1) % kv),
        ("key heads are read in reverse order (GQA mapping)", kv - 1 - right),
        ("every query head reads the last key head (GQA mapping)", h * 0 + kv - 1),
        ("query head h reads key head h % 2 (GQA mapping)", h % 2),
        ("query head h reads key head h // 2 (GQA mapping)", h // 2),
        ("query head h reads key head h (GQA mapping)", h),
    )
    if kv == 1:
        return
    tried: list[list[int]] = [right.tolist()]
    for words, heads in maps:
        heads = heads.clamp(0, kv - 1)
        if heads.tolist() not in tried:
            tried.append(heads.tolist())
            yield from _read(dense, "gqa mapping", words, lambda x, at=heads: x[:, at])  # type: ignore[misc]


def _of_batch_rows(dense: Dense) -> Iterator[Hypothesis]:
    if dense.case.batch == 1:
        return
    for words, change in (
        ("every batch row reads the keys of batch row 0", lambda x: x[:1].expand_as(x)),
        ("batch rows read the keys of the next batch row", lambda x: x.roll(-1, 0)),
        ("batch rows read the keys of the batch row before", lambda x: x.roll(1, 0)),
        ("batch row b reads the keys of batch row b // 2", lambda x: x[torch.arange(len(x)) // 2]),
    ):
        yield from _read(dense, "layout", words, change)
    if dense.case.kv_heads > 1:
        words = "batch and head are swapped in the offset of k and v"
        yield from _read(dense, "layout", words, lambda x: x.transpose(0, 1).reshape(x.shape))


def _of_keys(dense: Dense) -> Iterator[Hypothesis]:
    case, keys = dense.case, dense.keys
    if case.head_dim == case.v_dim:
        k, v = dense.k, dense.v
        yield dense.if_reading("layout", "k and v are swapped", lambda: v, lambda: k)
    for by in (1, -1):
        words = "keys are shifted by one against values"
        yield from _read(dense, "layout", words, lambda x, n=by: x.roll(n, 2), "k")  # type: ignore[misc]

    def at(cause: str, words: str, places: Tensor) -> Iterator[Hypothesis]:
        return _read(dense, cause, words, lambda x: x[:, :, places])

    if case.k_len > 1 << 15:
        yield from at("missing keys", "key indices wrap at 32,768 (16 bits)", keys % (1 << 15))
    for page in TILES:
        tail = case.k_len // page * page
        if 0 < tail < case.k_len:
            words = f"the keys past {tail} are those of another page of {page}"
            places = torch.where(keys < tail, keys, keys - tail)
            yield from at("layout", words, places)
            yield from at("layout", words, torch.where(keys < tail, keys, keys - page))
        if page < case.k_len:
            words = f"the last row of each tile of {page} values stands for the others"
            last = (keys // page * page + page - 1).clamp_max(case.k_len - 1)
            yield from _read(dense, "layout", words, lambda x, n=last: x[:, :, n], "v")  # type: ignore[misc]
            yield from at("layout", f"every page of {page} keys is the first one", keys % page)


def _of_order(dense: Dense) -> Iterator[Hypothesis]:
    """Keys and values in another order than the mask's: chunks of ranks (ring attention), not put back."""
    keys = dense.keys
    for chunks in (2, 4, 8):
        if len(keys) % chunks or len(keys) == chunks:
            continue
        parts = keys.view(chunks, -1)
        ends = [n // 2 if n % 2 == 0 else chunks - 1 - n // 2 for n in range(chunks)]
        for order, places in (
            ("zigzag", parts[ends].flatten()),
            ("zigzag", parts[ends].flatten().argsort()),
            ("reverse", parts.flip(0).flatten()),
            ("striped", parts.T.flatten()),
            ("striped", parts.T.flatten().argsort()),
        ):
            words = (
                f"keys and values are in {order} order of {chunks} chunks under the mask of the plain order"
            )
            yield from _read(dense, "layout", words, lambda x, n=places: x[:, :, n])  # type: ignore[misc]


def _of_features(dense: Dense, right: Exact) -> Iterator[Hypothesis]:
    case = dense.case

    def of_lanes(cause: str, words: str, lanes: slice) -> Hypothesis:
        return dense.if_scores_are(
            cause, words, lambda: dense.scored(dense.product(dense.q[..., lanes], dense.k[..., lanes]))
        )

    dim = case.head_dim
    whole = dim // 8 * 8
    if 0 < whole < dim:
        words = "features of q and k past the last multiple of 8 are not read"
        yield of_lanes("tail tile", words, slice(whole))
    for lanes in (16, 32, 64, 128):
        if lanes < dim:
            words = f"only the first {lanes} features of q and k are multiplied"
            yield of_lanes("not attention", words, slice(lanes))
            start = (dim - 1) // lanes * lanes
            words = f"only the last block of {lanes} features of q and k counts (= for +=)"
            yield of_lanes("not attention", words, slice(start, dim))
    for lanes in sorted({case.head_dim, *(lanes for lanes in (16, 32, 64, 128)), case.v_dim // 8 * 8}):
        if 0 < lanes < case.v_dim:
            written = torch.arange(case.v_dim, device=dense.keys.device) < lanes
            words = f"features of out past {lanes} are 0"
            yield Hypothesis("layout", words, partial(torch.mul, right.out, written))
            words = f"features of out past {lanes} are those of the first {lanes} again"
            again = torch.arange(case.v_dim, device=dense.keys.device) % lanes
            yield Hypothesis("layout", words, lambda x=again: right.out[..., x])  # type: ignore[misc]
    words = "the two halves of out's features are swapped"
    yield Hypothesis("layout", words, lambda: right.out.roll(case.v_dim // 2, 3))
    if case.v_dim != case.head_dim:
        flat = dense.v.flatten(2)
        places = dense.keys[:, None] * case.head_dim
        places = (places + torch.arange(case.v_dim, device=flat.device)) % flat.shape[2]
        words = "rows of V are taken for head_dim features long, not v_dim"
        yield dense.if_reading("layout", words, None, lambda: flat[:, :, places])


def ignoring_strides(x: Tensor) -> Tensor:
    """What a kernel reads that takes x for contiguous: its storage from the first element on."""
    held = x.untyped_storage().nbytes() // x.element_size()
    flat = x.as_strided((held,), (1,), 0)
    return flat[(torch.arange(x.numel(), device=x.device) + x.storage_offset()) % held].view(x.shape)


def _of_strides(dense: Dense) -> Iterator[Hypothesis]:
    inputs = dense.inputs
    for name in ("q", "k", "v"):
        x: Tensor = getattr(inputs, name)
        if x.is_contiguous() or x.untyped_storage().nbytes() > MOST_BYTES:
            continue
        words = f"{name}'s strides are ignored: it is read as if it were contiguous"
        if name == "q":
            yield dense.if_scores_are("layout", words, partial(_of_q_without_strides, dense))
        else:
            yield from _read(dense, "layout", words, ignoring_strides, name)


def _of_q_without_strides(dense: Dense) -> Tensor:
    return dense.scored(dense.product(dense.of_rows(ignoring_strides(dense.inputs.q)).double()))


def _added(out: Tensor, other: Tensor, where: Tensor) -> Tensor:
    return out + other * where


def _tiles_reversed(out: Tensor, rows: int, whole: int) -> Tensor:
    """out with its whole tiles of rows in reverse order."""
    tiles = out[:, :, :whole].unflatten(2, (-1, rows)).flip(2).flatten(2, 3)
    return torch.cat([tiles, out[:, :, whole:]], 2)


def _of_out(dense: Dense, right: Exact) -> Iterator[Hypothesis]:
    """The right numbers at the wrong places of out."""
    case, out = dense.case, right.out
    if case.q_heads == case.q_len:
        words = "heads and rows of out are swapped"
        yield Hypothesis("layout", words, lambda: out.transpose(1, 2))
    words = "out is [B, S, H, D] in memory, taken for [B, H, S, D]"
    yield Hypothesis("layout", words, lambda: out.transpose(1, 2).reshape(out.shape))
    words = "all axes of out are reversed"
    yield Hypothesis("layout", words, lambda: out.permute(3, 2, 1, 0).reshape(out.shape))
    if case.q_heads > 1:
        yield Hypothesis("layout", "heads of out are in reverse order", lambda: out.flip(1))
        words = "every head of out is that of the next head"
        yield Hypothesis("layout", words, lambda: out.roll(-1, 1))
        yield Hypothesis("layout", "every head of out is that of the head before", lambda: out.roll(1, 1))
    if case.group > 1 and case.kv_heads > 1:
        words = "heads of out are stored in the wrong order: by place in the group, then by key head (GQA)"
        grouped = out.unflatten(1, (case.kv_heads, case.group)).transpose(1, 2).flatten(1, 2)
        yield Hypothesis("layout", words, lambda: grouped)
        other = out.unflatten(1, (case.group, case.kv_heads)).transpose(1, 2).flatten(1, 2)
        yield Hypothesis("layout", words, lambda: other)
    i = torch.arange(case.q_len, device=out.device)[:, None]
    for rows in (1, *TILES):
        if rows < case.q_len:
            before = out.roll(rows, 2)
            words = f"out of {rows} rows is added to that of the next {rows}: the accumulator is not set to 0"
            yield Hypothesis("missing rows", words, partial(_added, out, before, i % (2 * rows) >= rows))
            yield Hypothesis("missing rows", words, partial(_added, out, before, i >= rows))
    for rows in TILES:
        whole = case.q_len // rows * rows
        if whole > rows:
            words = f"tiles of {rows} rows of out are stored in reverse order"
            yield Hypothesis("layout", words, lambda n=rows, m=whole: _tiles_reversed(out, n, m))  # type: ignore[misc]
    if case.batch > 1:
        first = torch.arange(case.batch, device=out.device)[:, None, None, None] == 0
        words = "batch rows past the first attend nothing: their out is 0"
        yield Hypothesis("missing rows", words, partial(torch.mul, out, first))
        yield Hypothesis("layout", "every batch row of out is that of row 0", lambda: out[:1].expand_as(out))
        yield Hypothesis("layout", "batch rows of out are in another order", lambda: out.flip(0))
