"""Mutants after public reports: sides and alignments of masks, forms of scores, heads, keys counted twice, delta."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.interface import Output
from attnbench.problem import Causal, Documents, Padding, SlidingWindow
from attnbench.selftest.mutants.catalogue import LeafChange, by_leaf, in_backward, mutant
from attnbench.selftest.mutants.masks import only_in_bounds
from attnbench.selftest.mutants.tiled import LOG2_E, Statistics, Tiled


def _window(sides: Callable[[Any], tuple[int | None, int | None]]) -> Callable[..., Tensor]:
    def change(self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return SlidingWindow(*sides(leaf)).predicate(self.extent, self.device)(b, h, q, k)

    return by_leaf(SlidingWindow, change)


mutant(
    "window with its left side on both",
    "mask boundary",
    "transformers#39408: (w, w) for a window with another right side",
    shows="window",
    permits=_window(lambda leaf: (leaf.left, leaf.left)),
)
mutant(
    "window halved",
    "mask boundary",
    "the width of both sides together taken for each side's",
    shows="window",
    permits=_window(lambda leaf: (leaf.left and leaf.left // 2, leaf.right and leaf.right // 2)),
)
mutant(
    "window top-left",
    "mask alignment",
    "centred on i instead of i + k_len - q_len",
    shows="window",
    permits=by_leaf(SlidingWindow, lambda self, leaf, may, b, h, q, k: may(b, h, q - self.offset(), k)),
)
_from_the_offset: LeafChange = lambda self, leaf, may, b, h, q, k: may(b, h, q, k) & (k >= self.offset())  # noqa: E731
mutant(
    "key loop starts at k_len - q_len",
    "missing keys",
    "gpt-oss#196: the keys of the cache are skipped",
    shows="causal",
    permits=by_leaf(Causal, _from_the_offset),
)


def _longest(self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    lengths = [max(leaf.lengths)] * self.case.batch
    return Padding(lengths, leaf.side).predicate(self.extent, self.device)(b, h, q, k)


mutant(
    "longest key length for all",
    "mask broadcast",
    "max_seqlen for seqlens",
    shows="padding",
    permits=by_leaf(Padding, _longest),
)


def _inclusive(self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    # Each document takes the first token of the next; empty ones stay empty.
    lists = []
    for lengths in leaf.lists:
        last = len(lengths) - 1
        moved = (
            [n + (i == 0) - (i == last) for i, n in enumerate(lengths)]
            if last and lengths[last]
            else list(lengths)
        )
        lists.append(moved)
    return Documents(lists if len(lists) > 1 else lists[0]).predicate(self.extent, self.device)(b, h, q, k)


mutant(
    "first document takes the next token",
    "mask boundary",
    "searchsorted with right=False",
    shows="documents",
    permits=by_leaf(Documents, _inclusive),
)


def _added(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
    if not self.case.mask.is_combined and self.case.mask.kinds == {"full"}:
        return Tiled.masked(self, s, rows, cols)
    return only_in_bounds(self, s + Tiled.allowed(self, rows, cols), rows, cols)


mutant(
    "mask added as numbers",
    "mask leak",
    "Ascend/pytorch#88: a boolean mask cast to float and added",
    shows="masked",
    masked=_added,
)
mutant(
    "softcap before the scale",
    "score change",
    "cap * tanh(q k / cap) * scale",
    shows="softcap",
    capped=lambda self, s: Tiled.capped(self, s / self.scale()) * self.scale(),
)
mutant(
    "softcap clips",
    "score change",
    "clamp(-cap, cap) for tanh",
    shows="softcap",
    capped=lambda self, s: s if self.cap() is None else s.clamp(-self.cap(), self.cap()),
)
mutant(
    "ALiBi exponents from head 0",
    "score change",
    "aprender#2143: 2^(-8 h / H)",
    shows="alibi",
    slopes=lambda self, score: tuple(2.0 ** (-8.0 * h / self.case.q_heads) for h in range(self.case.q_heads)),
)


def _rows_padded(self: Tiled, rows: slice, cols: slice) -> Tensor | None:
    tile, score = Tiled.bias_tile(self, rows, cols), self.score("bias")
    if tile is None or score.tensor.shape[2] == 1 or score.tensor.shape[3] == 1:
        return tile
    flat = score.tensor.float().flatten(2)
    row = torch.arange(rows.start, rows.stop, device=self.device)[:, None]
    at = row * (-(-self.case.k_len // 8) * 8) + self.keys_of(cols)
    return flat[:, :, at % flat.shape[2]]


mutant(
    "bias read with padded rows",
    "score change",
    "xformers#683: its row stride is taken for a multiple of 8 keys",
    shows="bias",
    bias_tile=_rows_padded,
)
mutant(
    "softmax in base 2",
    "scale",
    "exp2 without log2(e)",
    scores=lambda self, q, k, rows, cols: Tiled.scores(self, q, k, rows, cols) / LOG2_E,
)


def _one_more(self: Tiled, m: Tensor, row_sum: Tensor, acc: Tensor) -> Statistics:
    new = m.clamp_min(0.0)
    alpha = torch.exp(m - new)
    return new, row_sum * alpha + torch.exp(-new), acc * alpha


mutant(
    "1 added to the row sum",
    "sink",
    "onnxruntime's smooth softmax, where nobody asks for it",
    join_sink=_one_more,
)
mutant(
    "q rounded after its scale",
    "low precision",
    "transformers: q * scale in the dtype before the product",
    raw_scores=lambda self, q, k, rows, cols: self.product(
        self.rounded(q[:, :, rows] * self.scale()), self.padded(k, cols)
    ),
    dtypes=frozenset({"bf16", "fp16"}),
)


def _v_tiled(self: Tiled) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = Tiled.load(self)
    if self.case.group == 1:
        return q, k, v
    heads = torch.arange(self.case.q_heads, device=self.device) % self.case.kv_heads
    return q, k, self.read("v").float()[:, heads]


mutant("GQA tiled for V alone", "gqa mapping", "K's head right, V's h % kv_heads", load=_v_tiled)


def _by_place_in_group(self: Tiled, out: Tensor, lse: Tensor) -> Output:
    by_group = out.unflatten(1, (self.case.kv_heads, self.case.group)).transpose(1, 2).flatten(1, 2)
    return Output(by_group.contiguous(), lse)


mutant(
    "heads of out by place in the group",
    "layout",
    "a packed group is unpacked in the wrong order",
    store=_by_place_in_group,
)


def _shared_key(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
    first = torch.arange(cols.start, cols.stop, device=self.device) == cols.start
    return Tiled.masked(self, s, rows, cols) + first * (math.log(2) if cols.start else 0.0)


mutant(
    "tiles share a key",
    "tail tile",
    "inclusive ends: the first key of each tile but the first counts twice",
    masked=_shared_key,
)
mutant(
    "delta added",
    "gradients only",
    "dS = P * (dP + delta)",
    gradients_only=True,
    ds=lambda self, p, dp, delta: p * (dp + delta),
)
mutant(
    "backward top-left",
    "gradients only",
    "ffpa-attn#300: the forward is aligned bottom-right",
    gradients_only=True,
    shows="causal",
    masked_backward=in_backward(by_leaf(Causal, lambda self, leaf, may, b, h, q, k: k <= q)),
)
mutant(
    "delta of another head",
    "gradients only",
    "flash-attention#2337: the offset of delta is wrong",
    gradients_only=True,
    delta_tile=lambda self, delta, rows: delta.roll(1, 1)[:, :, rows],
)


def _tiled_group(self: Tiled, x: Tensor) -> Tensor:
    return x.unflatten(1, (self.case.group, self.case.kv_heads)).sum(1)


mutant(
    "GQA dk of a tiled group",
    "gqa mapping",
    "native-sparse-attention-triton#27: summed over h % kv_heads",
    gradients_only=True,
    reduced=_tiled_group,
)
