"""Mutants that take a number for another: 0 for "not given", -1 for a length, a sign or a size for an ordinary one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from attnbench.problem import Padding, SlidingWindow
from attnbench.selftest.mutants.catalogue import by_leaf, mutant
from attnbench.selftest.mutants.tiled import Tiled

mutant(
    "scale 0 taken for none",
    "scale",
    "SKaiNET#880: `scale or default`",
    scale=lambda self: self.case.scale or self.case.head_dim**-0.5,
)
mutant(
    "sign of the scale lost",
    "scale",
    "the root of the scale on q and on k",
    scale=lambda self: abs(self.case.softmax_scale),
)
mutant(
    "scale clipped", "scale", "a fixed range of scales", scale=lambda self: min(self.case.softmax_scale, 64.0)
)


def _sides(change: Callable[[int | None], int | None]) -> Callable[..., Tensor]:
    def window(self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        taken = SlidingWindow(leaf.left, leaf.right)
        for side in ("left", "right"):
            object.__setattr__(taken, side, change(getattr(leaf, side)))
        return taken.predicate(self.extent, self.device)(b, h, q, k)

    return by_leaf(SlidingWindow, window)


mutant(
    "unlimited side taken for -1",
    "mask boundary",
    "TransformerEngine#3528",
    shows="window",
    permits=_sides(lambda side: -1 if side is None else side),
)
mutant(
    "window side 0 taken for none",
    "mask boundary",
    "`left or None`",
    shows="window",
    permits=_sides(lambda side: side or None),
)
mutant(
    "lengths of 0 taken for none",
    "empty rows",
    "`if lengths.any()`: a batch of padding alone is not masked",
    shows="padding",
    permits=by_leaf(
        Padding,
        lambda self, leaf, may, b, h, q, k: may(b, h, q, k) if any(leaf.lengths) else (q >= 0) & (k >= 0),
    ),
)


def _sink(self: Tiled) -> Tensor | None:
    sink = Tiled.sink(self)
    return None if sink is None or not bool(sink.any()) else sink


mutant("sink of 0 taken for none", "sink", "`if sink.any()`", shows="sink", sink=_sink)
mutant(
    "slopes of 0 taken for none",
    "score change",
    "`if any(slopes)`, else those of the paper",
    shows="alibi",
    slopes=lambda self, score: (
        score.slopes_for(self.case.q_heads)
        if any(score.slopes_for(self.case.q_heads))
        else type(score)().slopes_for(self.case.q_heads)
    ),
)
