"""Mutants of the score changes: the softcap, ALiBi, the bias."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.mutants.masks import only_in_bounds
from attnbench.selftest.mutants.tiled import Tiled


def _capped_after_mask(self: Tiled, q: Tensor, k: Tensor, rows: slice, cols: slice) -> Tensor:
    s = self.masked(self.biased(self.raw_scores(q, k, rows, cols), rows, cols), rows, cols)
    return only_in_bounds(self, self.capped(s), rows, cols)


mutant(
    "softcap after mask", "score change", "flash-attention#1025", shows="softcap", scores=_capped_after_mask
)
mutant(
    "softcap missing", "score change", "logits_soft_cap not passed on", shows="softcap", cap=lambda self: None
)
mutant(
    "ALiBi slopes of a power of two",
    "score change",
    "mlx#3071: other head counts take every other slope of the next power",
    shows="alibi",
    slopes=lambda self, score: tuple(
        2.0 ** (-8.0 * (h + 1) / self.case.q_heads) for h in range(self.case.q_heads)
    ),
)


def _alibi_top_left(self: Tiled, rows: slice, cols: slice) -> Tensor | None:
    offset = self.case.k_len - self.case.q_len
    moved = slice(rows.start - offset, rows.stop - offset)
    return Tiled.alibi_tile(self, moved, cols)


mutant(
    "ALiBi top-left",
    "score change",
    "distance |i - j| instead of |p - j|",
    shows="alibi",
    alibi_tile=_alibi_top_left,
)


def _one_on_the_diagonal(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
    _, _, q, k = self.indices(rows, cols)
    return Tiled.biased(self, s, rows, cols) + (k == q + self.offset())


mutant(
    "1 added on the diagonal", "score change", "a mask of ones built with eye", biased=_one_on_the_diagonal
)


def _bias(change: Callable[[Tiled, Tensor], Tensor]) -> Callable[[Tiled, slice, slice], Tensor | None]:
    def bias_tile(self: Tiled, rows: slice, cols: slice) -> Tensor | None:
        tile = Tiled.bias_tile(self, rows, cols)
        return None if tile is None else change(self, tile)

    return bias_tile


mutant(
    "bias ignored",
    "score change",
    "attn_bias not passed on",
    shows="bias",
    bias_tile=lambda self, rows, cols: None,
)
mutant(
    "bias of batch row 0",
    "score change",
    "batch stride 0",
    shows="bias",
    bias_tile=_bias(lambda self, x: x[:1]),
)
mutant(
    "bias of head 0", "score change", "head stride 0", shows="bias", bias_tile=_bias(lambda self, x: x[:, :1])
)
mutant(
    "bias scaled",
    "score change",
    "added before the scale",
    shows="bias",
    bias_tile=_bias(lambda self, x: x * self.scale()),
)
mutant(
    "relative bias of the opposite offset",
    "score change",
    "index(j, i) for index(i, j)",
    shows="relative",
    relative_tile=lambda self, rows, cols: (
        None
        if self.score("relative") is None
        else self.score("relative").tensor.float().flip(1)[:, self.relative_index(rows, cols)]
    ),
)
