"""Mutants that keep what they should read: parameters compiled in at the first call of a shape, content known in part.

Each is right on every single call in a process of its own; the second call at the same sizes shows it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.interface import Output
from attnbench.problem import Padding, SlidingWindow
from attnbench.problem.masks import Mask
from attnbench.selftest.mutants.catalogue import by_leaf, mutant
from attnbench.selftest.mutants.tiled import Tiled

_first: dict[tuple[Any, ...], Any] = {}


def _kept(name: str, self: Tiled, value: Any) -> Any:
    """The value of the first call with these sizes and this dtype."""
    sizes = tuple(self.inputs.q.shape), tuple(self.inputs.k.shape), self.dtype
    return _first.setdefault((name, *sizes), value)


def _by_first_leaf(kind: type[Mask]) -> Callable[..., Tensor]:
    def change(self: Tiled, leaf: Any, may: Any, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        first = _kept(kind.__name__, self, leaf)
        return first.predicate(self.extent, self.device)(b, h, q, k)

    return by_leaf(kind, change)


def _sink(self: Tiled) -> Tensor | None:
    sink = Tiled.sink(self)
    return None if sink is None else _kept("sink", self, sink.clone())


def _bias_tile(self: Tiled, rows: slice, cols: slice) -> Tensor | None:
    tile = Tiled.bias_tile(self, rows, cols)
    return None if tile is None else _kept(f"bias {rows} {cols} {tuple(tile.shape)}", self, tile.clone())


def _cap(self: Tiled) -> float | None:
    cap = Tiled.cap(self)
    return None if cap is None else _kept("cap", self, cap)


mutant("softcap cached by shape", "protocol", "flash-attention#2402", shows="softcap", cap=_cap)
mutant(
    "ALiBi slopes cached by shape",
    "protocol",
    "slopes are a compile-time constant",
    shows="alibi",
    slopes=lambda self, score: _kept("slopes", self, Tiled.slopes(self, score)),
)
mutant(
    "window cached by shape",
    "protocol",
    "the window is a compile-time constant, and not in the key",
    shows="window",
    permits=_by_first_leaf(SlidingWindow),
)
mutant(
    "lengths cached by shape",
    "protocol",
    "a plan is made for the first batch's lengths",
    shows="padding",
    permits=_by_first_leaf(Padding),
)
mutant("sink cached by shape", "protocol", "the sinks of another layer", shows="sink", sink=_sink)
mutant("bias cached by shape", "protocol", "the bias of another layer", shows="bias", bias_tile=_bias_tile)


def _remembered_by(part: Callable[[dict[str, Tensor]], Tensor]) -> Callable[[Tiled], Output]:
    """A forward that keeps its last answers by this part of q, k and v."""

    def forward(self: Tiled) -> Output:
        key = tuple(part(self.inputs.tensors).flatten().tolist())
        last: dict[tuple[float, ...], Output] = self.__dict__.setdefault("last", {})
        if key not in last:
            last[key] = Tiled.forward(self)
        made = last[key]
        self.saved = (made.out, torch.as_tensor(made.lse))
        return made

    return forward


for _words, _part in (
    ("first elements", lambda x: x[0, 0, 0, :4].float()),
    ("sum", lambda x: x.float().sum()),
    ("mean and norm", lambda x: torch.stack((x.float().mean(), x.float().square().sum()))),
):
    mutant(
        f"cached by the {_words}",
        "protocol",
        "a checksum that a quick look at the inputs gives",
        forward=_remembered_by(
            lambda tensors, part=_part: torch.cat([part(tensors[n]).flatten() for n in "qkv"])  # type: ignore[misc]
        ),
    )
mutant(
    "cached by q alone",
    "protocol",
    "the keys are taken for those of the last step",
    forward=_remembered_by(lambda tensors: tensors["q"].float()),
)
