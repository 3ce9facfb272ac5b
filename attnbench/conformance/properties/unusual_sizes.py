"""Sizes and dtypes that a kernel may not have been written for: right where they are taken, else refused.

They are few and cheap, so they are asked beside the battery rather than drawn in it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from attnbench.backend.interface import Gradients, Output
from attnbench.conformance.battery_factors import Sizes
from attnbench.conformance.properties.property import PropertyFailure, Tried, holds, judged
from attnbench.conformance.subject import Answer, Raised, Refused, Subject, changed
from attnbench.errors import CaseError, MaskError, ScoreError
from attnbench.problem import Case

SMALL = {"batch": 1, "q_len": 33, "k_len": 33, "q_heads": 2}
LONG = {"batch": 1, "q_len": 4225, "k_len": 4353, "q_heads": 1, "head_dim": 32, "direction": "fwd"}
# No multiple of 8, in a vector load's first lane, between tiles and past 256.
SIZES: dict[str, dict[str, Any]] = {
    "head dim 9": SMALL | {"head_dim": 9},
    "head dim 100": SMALL | {"head_dim": 100},
    "head dim 300": SMALL | {"head_dim": 300},
    "decoding of grouped heads": {"q_len": 1, "k_len": 129, "q_heads": 8, "kv_heads": 2, "direction": "fwd"},
    "more than 4096 queries and keys": LONG,
}
MASKS = ("causal", "full")


@holds("head dims off a multiple of 8 or past 256, the LSE of grouped decoding, pair indices past 2^24")
def unusual_sizes_are_right(subject: Subject) -> Iterator[PropertyFailure]:
    """Head dims 9, 100 and 300, decoding of grouped heads with its LSE, and over 4096 queries and keys are right."""
    tried = Tried(subject)
    for what, sizes in SIZES.items():
        for mask in [name for name in MASKS if name in subject.makers] or list(subject.makers)[:1]:
            case = _case(subject, mask, sizes)
            answer = None if case is None else tried.answer(subject.inputs(case))
            if case is not None and answer is not None:
                inputs = subject.inputs(case)
                failures = judged(case, subject.reference(inputs), answer, inputs, what)
                yield from list(failures)[:1]
                break
    yield from tried.settle()


def _case(subject: Subject, mask: str, sizes: dict[str, Any]) -> Case | None:
    values: dict[str, Any] = subject.sizes | {"kv_heads": 0, "v_dim": 0, "dtype": subject.dtype}
    values |= {"direction": "fwd_bwd" if subject.backward else "fwd"} | sizes
    at = Sizes(values["q_len"], values["k_len"], values["batch"], values["q_heads"])
    try:
        return Case(mask=subject.makers[mask](at), **values)
    except (CaseError, MaskError, ScoreError):
        return None


@holds("numbers of one dtype read as those of another")
def mixed_dtypes_are_refused_or_right(subject: Subject) -> Iterator[PropertyFailure]:
    """q, k or v in float32 beside the others in half precision: an exception, or the answer to the same numbers."""
    case = subject.typical_case()
    if case is None or subject.dtype == "fp32":
        return
    inputs = subject.inputs(case)
    for name in ("q", "k", "v"):
        wide = changed(inputs, **{name: inputs.tensors[name].float()})
        try:
            answer = subject.answer(wide)
        except (Refused, Raised):
            continue
        answer = _in(answer, inputs.v.dtype)
        cause = f"{name} in float32 is read as {subject.dtype}, or by the other's strides"
        text = f"{name} in float32, the others in {subject.dtype}"
        yield from list(judged(case, subject.reference(inputs), answer, inputs, text, (cause,)))[:1]


def _in(answer: Answer, dtype: torch.dtype) -> Answer:
    """The answer in one dtype: which one a mixed call returns is open."""
    out, gradients = answer.output.out.to(dtype), answer.gradients
    if gradients is not None:
        dq, dk, dv = (x.to(dtype) for x in (gradients.dq, gradients.dk, gradients.dv))
        gradients = Gradients(dq, dk, dv, gradients.scores)
    return Answer(Output(out, answer.output.lse), gradients)
