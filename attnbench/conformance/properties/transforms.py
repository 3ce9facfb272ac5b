"""torch transforms a plain function of q, k and v: over a batch, into compiled code for any length, into its gradients.

Judged by the oracle, never by the bits of another call. An exception there is a refusal, in its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.differentiable import FunctionBackend, output_of
from attnbench.backend.interface import Gradients, Output
from attnbench.conformance.properties.property import PropertyFailure, holds, judged
from attnbench.conformance.subject import Answer, Refused, Subject, allowed_pairs
from attnbench.problem import Case

LENGTHS = (48, 65, 97)  # a multiple of a tile, one more than one, and a ragged one
COMPILER = "inductor"


def _function(subject: Subject) -> Callable[..., Any]:
    if not isinstance(subject.backend, FunctionBackend):
        raise Refused("torch transforms a function of q, k and v, and this is none")
    return subject.backend.fn


def _refusal(what: str, error: Exception) -> Refused:
    return Refused(f"{what} raises {type(error).__name__}: {str(error).partition(chr(10))[0]}")


@holds("a batch dimension that is counted or reshaped away", level="exhaustive")
def vmap_over_batch_rows_gives_the_same(subject: Subject) -> Iterator[PropertyFailure]:
    """torch.vmap of a plain function over batch rows, each of batch 1, gives each row's answer."""
    fn = _function(subject)
    for _, case in subject.any_case(direction="fwd"):
        if case.mask.varies_over_batch:
            continue
        inputs = subject.inputs(case)

        def one(q: Tensor, k: Tensor, v: Tensor, case: Case = case) -> Tensor:
            row = (x[None] for x in (q, k, v))
            out = output_of(fn(*row, mask=case.mask, scores=(), scale=case.softmax_scale)).out
            return out[0]

        try:
            out = torch.vmap(one)(inputs.q, inputs.k, inputs.v)
        except Exception as error:
            raise Refused(
                f"vmap raises {type(error).__name__}: {str(error).partition(chr(10))[0]}"
            ) from error
        subject.answers += 1
        answer = Answer(Output(out.detach()), None)
        cause = "a batch dimension is counted, reshaped or reduced over"
        yield from judged(case, subject.reference(inputs), answer, inputs, "under torch.vmap", (cause,))


@dataclass(frozen=True)
class Made:
    """A mask that was made before: its tensor, bool [B|1, H|1, Q, K]."""

    tensor: Tensor

    def materialize(self, *sizes: int, **named: Any) -> Tensor:
        """The tensor, whatever sizes are asked for."""
        return self.tensor


@holds("a length compiled in, a tail that dynamic shapes lose", level="exhaustive")
def compiled_code_takes_any_length(subject: Subject) -> Iterator[PropertyFailure]:
    """torch.compile(dynamic=True) of a plain function gives the answers of three lengths, one after the other.

    The mask is made outside, and its tensor passed in.
    """
    fn = _function(subject)
    compiled: Any = None
    for length in LENGTHS:
        case: Case | None = subject.case("causal", q_len=length, k_len=length)
        if case is None:
            continue
        scale = case.softmax_scale
        if compiled is None:

            def region(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float = scale) -> Tensor:
                return output_of(fn(q, k, v, mask=Made(allowed), scores=(), scale=scale)).out

            compiled = torch.compile(region, dynamic=True, backend=COMPILER)
        inputs = subject.inputs(case)
        leaves = [x.detach().requires_grad_(case.needs_backward) for x in (inputs.q, inputs.k, inputs.v)]
        try:
            out = compiled(*leaves, allowed_pairs(case, subject.device))
            if inputs.dout is not None:
                out.backward(inputs.dout)
        except Exception as error:
            raise _refusal("torch.compile(dynamic=True)", error) from error
        subject.answers += 1
        dq, dk, dv = (torch.zeros_like(x) if x.grad is None else x.grad for x in leaves)
        gradients = None if inputs.dout is None else Gradients(dq, dk, dv)
        answer = Answer(Output(out.detach()), gradients)
        cause = "a length, or a number of tiles, of the first call is compiled in"
        text = f"torch.compile(dynamic=True) at {length} tokens"
        yield from judged(case, subject.reference(inputs), answer, inputs, text, (cause,))
