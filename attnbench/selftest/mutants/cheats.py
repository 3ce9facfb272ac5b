"""Mutants that cheat a harness or break its protocol: caches, unfinished work, changed inputs, patched clocks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from attnbench.backend.interface import Gradients, Output
from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.mutants.tiled import Tiled


def _stored(change: Callable[[Tiled, Tensor], Tensor]) -> Callable[..., Output]:
    return lambda self, out, lse: Output(change(self, out), lse)


mutant("zeros", "not attention", "KernelBench#165", store=_stored(lambda self, out: torch.zeros_like(out)))
mutant(
    "mean of V",
    "not attention",
    "right if all weights are equal",
    store=_stored(lambda self, out: self.load()[2].mean(2, keepdim=True).expand(out.shape).to(out.dtype)),
)


def _but_the_tail(self: Tiled) -> Iterator[slice]:
    tiles = list(Tiled.row_tiles(self))
    ragged = len(tiles) > 1 and self.case.q_len % self.tiling.block_q
    return iter(tiles[:-1] if ragged else tiles)


mutant(
    "unwritten tail rows",
    "missing rows",
    "KernelBench#82: the memory of the last right answer may still be there",
    row_tiles=_but_the_tail,
)

_answers: dict[tuple[int, ...], Output] = {}


def _remembered(self: Tiled) -> Output:
    # Keep only the last answer: later tensors reuse freed addresses.
    key = (self.inputs.q.data_ptr(), self.inputs.k.data_ptr(), self.inputs.v.data_ptr())
    if key not in _answers:
        _answers.clear()
        _answers[key] = Tiled.forward(self)
    else:
        self.saved = (_answers[key].out, torch.as_tensor(_answers[key].lse))
    return _answers[key]


mutant(
    "cached by data_ptr",
    "protocol",
    "new numbers in the same storage give the old answer",
    forward=_remembered,
)


def _scaled_in_place(self: Tiled) -> Output:
    q = self.inputs.q
    q.mul_(self.case.softmax_scale)
    keep, self.scale = self.scale, lambda: 1.0  # type: ignore[method-assign]
    made = Tiled.forward(self)
    self.scale = keep  # type: ignore[method-assign]
    return made


mutant("q scaled in place", "protocol", "the caller's q is changed", forward=_scaled_in_place)


def _not_yet_done(self: Tiled) -> Output:
    made = Tiled.forward(self)
    self.finish_later = getattr(self, "finish_later", [])  # type: ignore[attr-defined]
    for late, value in self.finish_later:  # type: ignore[attr-defined]
        late.copy_(value)
    unfinished = torch.zeros_like(made.out)
    self.finish_later = [(unfinished, made.out)]  # type: ignore[attr-defined]
    return Output(unfinished, made.lse)


mutant(
    "work not waited for",
    "protocol",
    "another stream, not synchronised: the answer is written after the call has returned",
    forward=_not_yet_done,
)


def _tires(self: Tiled) -> Output:
    self.calls = getattr(self, "calls", 0) + 1  # type: ignore[attr-defined]
    made = Tiled.forward(self)
    if self.calls > 2:  # type: ignore[attr-defined]
        return Output(made.out.roll(1, 2) * 0.5, made.lse)
    return made


mutant("different after two calls", "protocol", "a fast path once warm", forward=_tires)


def _sdpa(self: Tiled) -> Output:
    made = Tiled.forward(self)
    c = self.case
    plain = c.mask.kinds == {"full"} and not c.scores
    if not plain:
        return made
    out = F.scaled_dot_product_attention(
        self.inputs.q, self.inputs.k, self.inputs.v, scale=c.softmax_scale, enable_gqa=c.group != 1
    )
    return Output(out, made.lse)


mutant(
    "fallback to another kernel",
    "protocol",
    "a right answer, but of another kernel than the named one",
    forward=_sdpa,
)
mutant(
    "output of another dtype",
    "protocol",
    "float32 out of a half-precision call, or float64",
    store=_stored(lambda self, out: out.double() if out.dtype == torch.float32 else out.float()),
)


def _patched_timer(self: Tiled) -> Output:
    frozen = time.perf_counter_ns()
    time.perf_counter_ns = lambda: frozen  # type: ignore[assignment]
    return Tiled.forward(self)


mutant("monkey-patched timer", "protocol", "the clock stands still", forward=_patched_timer)

_buffers: dict[tuple[object, ...], Tensor] = {}


def _reused(self: Tiled, out: Tensor, lse: Tensor) -> Output:
    buffer = _buffers.setdefault((tuple(out.shape), out.dtype), torch.empty_like(out))
    buffer.copy_(out)
    return Output(buffer, lse)


mutant("the last answer overwritten", "protocol", "every call returns the same buffer", store=_reused)


def _first_gradients(self: Tiled, dout: Tensor) -> Gradients:
    if not hasattr(self, "first"):
        self.first = Tiled.backward(self, dout)  # type: ignore[attr-defined]
    return self.first  # type: ignore[attr-defined]


mutant(
    "gradients of the first dO",
    "protocol",
    "the backward is computed once and remembered",
    gradients_only=True,
    backward=_first_gradients,
)
