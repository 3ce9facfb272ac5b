"""torch's modes change how a call is made, not what it computes: no_grad, inference_mode and autocast.

Judged by the oracle, never by the bits of another call. An exception there is a refusal, in its words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from attnbench.backend.interface import Gradients, Output
from attnbench.conformance.properties.property import PropertyFailure, holds, judged
from attnbench.conformance.protocol import memory_poisoned
from attnbench.conformance.subject import Answer, Refused, Subject, changed
from attnbench.judge.reference import make_reference
from attnbench.problem import Inputs, make_inputs

REGION: Literal["bf16"] = "bf16"  # the dtype of an autocast region on every device


def _answer(
    subject: Subject, inputs: Inputs, mode: Callable[[], AbstractContextManager[object]] = nullcontext
) -> Answer:
    """The answer to a call inside a mode, its backward outside; Refused if it raises."""
    refusal = subject.backend.refuses(inputs.case, subject.device)
    if refusal is not None:
        raise Refused(refusal.reason)
    try:
        with memory_poisoned():
            with mode():
                prepared = subject.backend.prepare(inputs.case, inputs)
                output = prepared.forward()
            gradients = None if inputs.dout is None else prepared.backward(inputs.dout)
    except Exception as error:
        raise Refused(f"raises {type(error).__name__}: {str(error).partition(chr(10))[0]}") from error
    subject.answers += 1
    return Answer(output, gradients)


@holds("a fast path of inference that computes something else", level="exhaustive")
def inference_makes_no_difference(subject: Subject) -> Iterator[PropertyFailure]:
    """Under torch.no_grad and torch.inference_mode, with tensors made there, out is right."""
    cases = [case for _, case in subject.any_case(direction="fwd")]
    refused = []
    for case in cases:
        reference = subject.reference(subject.inputs(case))
        for name, mode in (("no_grad", torch.no_grad), ("inference_mode", torch.inference_mode)):
            with mode():
                inputs = subject.inputs(case)
            try:
                answer = _answer(subject, inputs, mode)
            except Refused as refusal:
                refused.append(f"torch.{name}: {refusal}")
                continue
            cause = f"another path runs under torch.{name}"
            yield from judged(case, reference, answer, inputs, f"under torch.{name}", (cause,))
    if refused:
        raise Refused(refused[0])


@holds("a scale, a mask or a dtype that is another under autocast", level="exhaustive")
def autocast_computes_in_its_dtype(subject: Subject) -> Iterator[PropertyFailure]:
    """fp32 tensors that hold bf16 numbers, in an autocast region of bf16, give what the DENSE contract allows in bf16.

    out may come in either dtype; the backward runs outside the region.
    """
    if subject.dtype != "fp32":
        return
    for _, case in subject.any_case():
        half = make_inputs(replace(case, dtype=REGION), subject.seed, subject.device)
        wide = changed(half, case=case, **{n: _wide(getattr(half, n)) for n in ("q", "k", "v", "dout")})
        device = subject.device.split(":")[0]
        answer = _answer(subject, wide, lambda device=device: torch.autocast(device, torch.bfloat16))  # type: ignore[misc]
        g = answer.gradients
        dtype = half.q.dtype
        gradients = None if g is None else Gradients(g.dq.to(dtype), g.dk.to(dtype), g.dv.to(dtype))
        rounded = Answer(Output(answer.output.out.to(dtype)), gradients)
        reference = make_reference(half, "dense", subject.seed)
        cause = "another path runs under torch.autocast"
        yield from judged(half.case, reference, rounded, half, "under torch.autocast(bf16)", (cause,))


def _wide(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()
