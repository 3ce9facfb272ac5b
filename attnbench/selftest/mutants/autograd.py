"""The tiled attention as one node of autograd, and mutants in which inputs it looks at to decide what it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.differentiable import AutogradPrepared
from attnbench.backend.interface import Backend, Prepared
from attnbench.problem import Case, Inputs, Score
from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.mutants.tiled import Tiled, TiledBackend

# Whether q, k, v, and then the tensors of score changes, require a gradient -> which of them get one.
Gets = Callable[[Sequence[bool]], Sequence[bool]]


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, inputs: Inputs, gets: Gets, *tensors: Tensor) -> Tensor:
        ctx.gets, ctx.tiled = gets, Tiled(inputs.case, inputs)
        return ctx.tiled.forward().out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        made = ctx.tiled.backward(dout)
        named = {s.gradient for s in ctx.tiled.inputs.scores if s.tensor is not None and s.gradient}
        of_scores = [made.scores[name] for name in made.scores if name in named]
        gradients = (made.dq, made.dk, made.dv, *of_scores)
        gets = ctx.gets(ctx.needs_input_grad[2:])
        return (None, None, *(x if does else None for x, does in zip(gradients, gets, strict=True)))


class AutogradBackend(TiledBackend):
    """The tiled attention whose gradients autograd hands out, as `gets` says."""

    def __init__(self, name: str, gets: Gets = lambda needs: needs) -> None:
        super().__init__(name)
        self.gets = gets

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        def compute(q: Tensor, k: Tensor, v: Tensor, scores: tuple[Score, ...]) -> Tensor:
            held = replace(inputs, q=q, k=k, v=v, scores=scores)
            tensors = [s.tensor for s in scores if s.tensor is not None]
            return _Node.apply(held, self.gets, q, k, v, *tensors)  # type: ignore[no-any-return]

        return AutogradPrepared(case, inputs, compute, kernel=self.name)


def _through(gets: Gets) -> Callable[[str], Backend]:
    return lambda name: AutogradBackend(name, gets)


def _only_if_k(needs: Sequence[bool]) -> Sequence[bool]:
    return (needs[0], needs[1], needs[2] and needs[1], *needs[3:])


def _only_if_q(needs: Sequence[bool]) -> Sequence[bool]:
    return (*needs[:3], *(need and needs[0] for need in needs[3:]))


mutant(
    "no dv unless k asks",
    "gradients only",
    "pytorch/xla#8685",
    gradients_only=True,
    make=_through(_only_if_k),
)
mutant(
    "no gradient of scores unless q asks",
    "gradients only",
    "a bias that is trained beside frozen projections",
    gradients_only=True,
    shows="bias relative sink",
    make=_through(_only_if_q),
)
