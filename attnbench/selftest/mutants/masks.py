"""Mutants that allow other pairs than the mask, or give empty rows a wrong result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.interface import Output
from attnbench.problem import (
    BlockSparse,
    Causal,
    Dilated,
    Documents,
    Explicit,
    GlobalTokens,
    Padding,
    PrefixLM,
    SlidingWindow,
)
from attnbench.problem.masks import And, Mask
from attnbench.selftest.mutants.catalogue import LeafChange, by_leaf, mutant
from attnbench.selftest.mutants.tiled import Statistics, Tiled

CAUSAL = "causal causal(top_left)"


def _everything(self: Tiled, leaf: Mask, may: object, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
    return (q >= 0) & (k >= 0)


mutant(
    "causal strict",
    "mask boundary",
    "j < i: a query does not attend its own key",
    shows=CAUSAL,
    permits=by_leaf(Causal, lambda self, leaf, may, b, h, q, k: may(b, h, q, k + 1)),
)
mutant(
    "causal plus one",
    "mask boundary",
    "j <= i + 1: the next token leaks",
    shows=CAUSAL,
    permits=by_leaf(Causal, lambda self, leaf, may, b, h, q, k: may(b, h, q, k - 1)),
)
mutant(
    "causal top-left for bottom-right",
    "mask alignment",
    "flash-attention#282, pytorch#108108",
    shows="causal",
    permits=by_leaf(Causal, lambda self, leaf, may, b, h, q, k: k <= q),
)
mutant(
    "causal bottom-right for top-left",
    "mask alignment",
    "the other way round: flash-attention 2.1 changed it",
    shows="causal(top_left)",
    permits=by_leaf(Causal, lambda self, leaf, may, b, h, q, k: k <= q + self.offset()),
)
mutant(
    "causal rounded up to 4 queries",
    "mask boundary",
    "pytorch#195910",
    shows=CAUSAL,
    permits=by_leaf(Causal, lambda self, leaf, may, b, h, q, k: may(b, h, q // 4 * 4 + 3, k)),
)
mutant(
    "causal ignored",
    "mask ignored",
    "is_causal not passed on",
    shows=CAUSAL,
    permits=by_leaf(Causal, _everything),
)


def _without_last_diagonal(self: Tiled, rows: slice) -> list[slice]:
    tiles = Tiled.col_tiles(self, rows)
    ragged = rows.stop == self.case.q_len and self.case.q_len % self.tiling.block_q
    diagonal = rows.stop - 1 + self.offset()
    kept = [cols for cols in tiles if not cols.start <= diagonal < cols.stop]
    return (
        kept if ragged and len(tiles) > 1 and self.case.mask.kinds & {"causal", "causal(top_left)"} else tiles
    )


mutant(
    "last diagonal tile skipped",
    "missing keys",
    "the bound of the key loop is rounded down when q_len is ragged",
    shows=CAUSAL,
    col_tiles=_without_last_diagonal,
)
mutant(
    "single-query decode top-left",
    "mask alignment",
    "pytorch#144858",
    shows="causal",
    permits=by_leaf(
        Causal, lambda self, leaf, may, b, h, q, k: k <= q if self.case.q_len == 1 else may(b, h, q, k)
    ),
)
mutant(
    "boolean mask inverted",
    "mask shape",
    "pytorch#170415: True taken as masked",
    shows="explicit",
    permits=by_leaf(Explicit, lambda self, leaf, may, b, h, q, k: ~may(b, h, q, k)),
)
mutant(
    "explicit mask dropped when causal",
    "mask ignored",
    "is_causal wins over attn_mask",
    shows="explicit",
    permits=by_leaf(
        Explicit,
        lambda self, leaf, may, b, h, q, k: (
            (q >= 0) & (k >= 0) if "causal" in self.case.mask.kinds else may(b, h, q, k)
        ),
    ),
)
mutant(
    "mask of batch row 0 for all",
    "mask broadcast",
    "batch stride 0",
    shows="padding documents explicit",
    permits=lambda self, mask, b, h, q, k: Tiled.permits(self, mask, b * 0, h, q, k),
)
mutant(
    "mask of head 0 for all",
    "mask broadcast",
    "head stride 0",
    shows="block_sparse explicit",
    permits=lambda self, mask, b, h, q, k: Tiled.permits(self, mask, b, h * 0, q, k),
)
mutant(
    "mask transposed",
    "mask shape",
    "mask[j, i]",
    shows="explicit",
    permits=by_leaf(
        Explicit,
        lambda self, leaf, may, b, h, q, k: may(
            b, h, k.clamp_max(self.case.q_len - 1), q.clamp_max(self.case.k_len - 1)
        ),
    ),
)


def _whole_tiles(self: Tiled, rows: slice, cols: slice) -> Tensor:
    allowed = Tiled.allowed(self, rows, cols)
    return allowed.amax((2, 3), keepdim=True) & self.in_bounds(self.indices(rows, cols)[3])


mutant("mask at block granularity", "mask shape", "pytorch#141126", shows="masked", allowed=_whole_tiles)


def only_in_bounds(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
    return s.masked_fill(~self.in_bounds(self.indices(rows, cols)[3]), -torch.inf)


mutant(
    "-1e4 instead of -inf",
    "mask leak",
    "transformers#17306",
    shows="masked",
    masked=lambda self, s, rows, cols: only_in_bounds(
        self, torch.where(Tiled.allowed(self, rows, cols), s, -1e4), rows, cols
    ),
)


def _sentinel(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
    # Rows without keys are handled apart, so that only very low scores show the sentinel.
    b, h, q, _ = self.indices(rows, cols)
    every = torch.arange(self.case.k_len, device=self.device)[None, None, None, :]
    some = self.permits(self.case.mask, b, h, q, every).any(-1, keepdim=True)
    marked = torch.where(Tiled.allowed(self, rows, cols), s, -5e4).masked_fill(~some, -torch.inf)
    return only_in_bounds(self, marked, rows, cols)


mutant("finite sentinel -5e4", "mask leak", "flashinfer#4401", shows="masked", masked=_sentinel)


def _unguarded(self: Tiled, m: Tensor, row_sum: Tensor, acc: Tensor, s: Tensor, v: Tensor) -> Statistics:
    new = self.maximum(m, s)
    alpha, p = self.exp(m - new), self.exp(s - new)
    return new, self.add_sum(row_sum, alpha, p), self.add_values(acc, alpha, p, v)


def _two_minima(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
    b, h, q, k = self.indices(rows, cols)
    inside = k.clamp_max(self.case.k_len - 1)
    mask = self.case.mask
    terms = (mask.left, mask.right) if isinstance(mask, And) else (mask,)
    lowest = torch.finfo(self.dtype).min
    added = torch.zeros((), dtype=self.dtype, device=self.device)
    for term in terms:
        added = added + (~self.permits(term, b, h, q, inside)).to(self.dtype) * lowest
    return only_in_bounds(self, s + added.float(), rows, cols)


mutant(
    "two finfo.min added",
    "empty rows",
    "NeMo Automodel#2658",
    shows="masked",
    masked=_two_minima,
    update=_unguarded,
)
mutant(
    "score multiplied by the mask",
    "mask leak",
    "a masked score becomes 0, not -inf",
    shows="masked",
    masked=lambda self, s, rows, cols: only_in_bounds(self, s * Tiled.allowed(self, rows, cols), rows, cols),
)
mutant(
    "empty row NaN",
    "empty rows",
    "pytorch#103749",
    shows="masked",
    finish=lambda self, m, row_sum, acc: (acc / row_sum, (m + torch.log(row_sum)).squeeze(-1)),
)


def _mean_where_empty(self: Tiled, out: Tensor, lse: Tensor) -> Output:
    mean = self.load()[2].mean(2, keepdim=True).to(out.dtype)
    return Tiled.store(self, torch.where(lse[..., None] == -torch.inf, mean, out), lse)


mutant("empty row mean of V", "empty rows", "mlx#2395", shows="masked", store=_mean_where_empty)
mutant(
    "first tile all -inf gives NaN",
    "online softmax",
    "xformers#722, pytorch#127055",
    shows="masked",
    update=_unguarded,
)


def _window(left: int, right: int | None, unlimited_right: bool = False) -> LeafChange:
    def change(self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        wide_left = None if leaf.left is None else max(0, leaf.left + left)
        wide_right = None if leaf.right is None or unlimited_right else max(0, leaf.right + (right or 0))
        return SlidingWindow(wide_left, wide_right).predicate(self.extent, self.device)(b, h, q, k)

    return change


WIDER, NARROWER = _window(1, 0), _window(-1, 0)
mutant(
    "window one too long",
    "mask boundary",
    "transformers#39408",
    shows="window",
    permits=by_leaf(SlidingWindow, WIDER),
)
mutant(
    "window one too short",
    "mask boundary",
    "sglang#34273",
    shows="window",
    permits=by_leaf(SlidingWindow, NARROWER),
)
mutant(
    "window one-sided",
    "mask ignored",
    "the right side of the window is not read",
    shows="window",
    permits=by_leaf(SlidingWindow, _window(0, None, unlimited_right=True)),
)
mutant(
    "window ignored",
    "mask ignored",
    "sliding_window=None",
    shows="window",
    permits=by_leaf(SlidingWindow, _everything),
)


def _lengths(change: Callable[[int], int]) -> Callable[..., Tensor]:
    def changed(self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        lengths = [min(max(0, change(n)), self.case.k_len) for n in leaf.lengths]
        return Padding(lengths, leaf.side).predicate(self.extent, self.device)(b, h, q, k)

    return by_leaf(Padding, changed)


mutant(
    "key length plus one",
    "mask boundary",
    "one padded key leaks",
    shows="padding",
    permits=_lengths(lambda n: n + 1),
)
mutant(
    "key length minus one",
    "mask boundary",
    "the last key is lost",
    shows="padding",
    permits=_lengths(lambda n: n - 1),
)
mutant(
    "key length of batch row 0",
    "mask broadcast",
    "seqlens[0] for every batch row",
    shows="padding",
    permits=by_leaf(Padding, lambda self, leaf, may, b, h, q, k: may(b * 0, h, q, k)),
)
mutant(
    "padding ignored",
    "mask ignored",
    "seqlens not passed on",
    shows="padding",
    permits=by_leaf(Padding, _everything),
)
mutant(
    "left padding taken as right",
    "mask alignment",
    "decoder-only batches are padded on the left",
    shows="padding",
    permits=by_leaf(
        Padding,
        lambda self, leaf, may, b, h, q, k: Padding(leaf.lengths).predicate(self.extent, self.device)(
            b, h, q, k
        ),
    ),
)
mutant(
    "cu_seqlens right only at batch 1",
    "mask broadcast",
    "offsets of the first batch row for all",
    shows="documents",
    permits=by_leaf(Documents, lambda self, leaf, may, b, h, q, k: may(b * 0, h, q, k)),
)
mutant(
    "documents ignored",
    "mask ignored",
    "packed documents attend each other",
    shows="documents",
    permits=by_leaf(Documents, _everything),
)
mutant(
    "prefix one too long",
    "mask boundary",
    "j <= n",
    shows="prefix",
    permits=by_leaf(PrefixLM, lambda self, leaf, may, b, h, q, k: may(b, h, q, k) | (k == leaf.n)),
)
mutant(
    "global rows forgotten",
    "mask shape",
    "global tokens are attended but do not attend",
    shows="global",
    permits=by_leaf(GlobalTokens, lambda self, leaf, may, b, h, q, k: (k < leaf.n) & (q >= 0)),
)
mutant(
    "block layout transposed",
    "mask shape",
    "layout[j // block, i // block]",
    shows="block_sparse",
    permits=by_leaf(
        BlockSparse,
        lambda self, leaf, may, b, h, q, k: may(
            b, h, k.clamp_max(self.case.q_len - 1), q.clamp_max(self.case.k_len - 1)
        ),
    ),
)
mutant(
    "dilation counted from the first key",
    "mask alignment",
    "j % step == 0 instead of (p - j) % step == 0",
    shows="dilated",
    permits=by_leaf(Dilated, lambda self, leaf, may, b, h, q, k: (q >= 0) & (k % leaf.s == 0)),
)
