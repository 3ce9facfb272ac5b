"""q, k, v, a bias and dO give the same answer wherever and however they lie in memory.

A last dimension that is not contiguous may be refused (`contiguous_features`), by an exception too if nothing is
declared; a wrong answer is wrong. The answers are judged as those of the same numbers in contiguous memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from attnbench.backend.differentiable import FunctionBackend
from attnbench.conformance.properties.property import PropertyFailure, holds, judged
from attnbench.conformance.subject import Answer, Raised, Refused, Subject, changed
from attnbench.problem import Bias, Inputs
from attnbench.problem.inputs import torch_dtype

FAR = 1 << 31  # elements


def answer_or_refusal(subject: Subject, inputs: Inputs, may_raise: bool = False) -> Answer | str:
    """The answer, or the words of a refusal; an exception is one for a plain function, or where it `may_raise`."""
    try:
        return subject.answer(inputs)
    except Refused as refusal:
        return str(refusal)
    except Raised as error:
        if may_raise or isinstance(subject.backend, FunctionBackend):
            return str(error)
        raise


def apart(x: Tensor, offset: int = 3) -> Tensor:
    """The same numbers, every second element of memory that begins `offset` elements late; between them lies NaN."""
    held = x.new_full((offset + 2 * x.numel(),), float("nan"))
    there = held[offset:].view(*x.shape, 2)[..., 0]
    return there.copy_(x)


@holds("a last dimension taken for contiguous, a storage offset that is not added, a stride of 0")
def memory_makes_no_difference(subject: Subject) -> Iterator[PropertyFailure]:
    """q, k, v with gaps between features, at a storage offset, and expanded from one row (stride 0), are read right."""
    case = next((case for _, case in subject.any_case(q_heads=4)), None)
    if case is None:
        return
    inputs = subject.inputs(case)
    refused = []
    late = {name: _late(getattr(inputs, name)) for name in "qkv"}
    spaced = {name: apart(getattr(inputs, name)) for name in "qkv"}
    one = {"q": inputs.q[:, :1].expand_as(inputs.q)} | {
        name: x[:1, :, :1].expand_as(x) for name, x in (("k", inputs.k), ("v", inputs.v))
    }
    for what, tensors, cause in (
        ("q, k, v at a storage offset", late, "the storage offset is not added to the address"),
        ("q, k, v with gaps between features", spaced, "the last dimension is taken for contiguous"),
        ("q, k, v expanded from one row", one, "a stride of 0 is not read, or taken for another"),
    ):
        asked = changed(inputs, **tensors)
        may_raise = tensors is spaced and subject.backend.capabilities.contiguous_features
        answer = answer_or_refusal(subject, asked, may_raise)
        if isinstance(answer, str):
            refused.append(f"{what}: {answer}")
            continue
        reference = subject.reference(asked if tensors is one else inputs)
        yield from judged(case, reference, answer, asked, what, (cause,))
    if refused:
        raise Refused("; ".join(refused))


def _late(x: Tensor, offset: int = 5) -> Tensor:
    """The same numbers and order in memory that begins `offset` elements late, after NaN."""
    held = x.new_full((offset + x.numel(),), float("nan"))
    return held[offset:].view(x.shape).copy_(x)


@holds("strides of a bias that are not read", level="exhaustive")
def memory_of_a_bias_makes_no_difference(subject: Subject) -> Iterator[PropertyFailure]:
    """A bias expanded from one row (stride 0), and one with gaps between its columns, are added right."""
    cases = (case for _, case in subject.any_case(q_heads=4, scores=(Bias("bhqk"),)))
    case = next(cases, None)
    if case is None:
        return
    inputs = subject.inputs(case)
    (score,) = inputs.scores
    assert score.tensor is not None
    expanded = score.tensor[:, :1, :1].expand_as(score.tensor)
    for what, tensor in (
        ("a bias expanded from one row", expanded),
        ("a bias with gaps", apart(score.tensor)),
    ):
        asked = changed(inputs, scores=(score.bound(tensor),))
        answer = answer_or_refusal(subject, asked)
        if isinstance(answer, str):
            raise Refused(f"{what}: {answer}")
        cause = "the strides of the bias are not read"
        yield from judged(case, subject.reference(asked), answer, asked, what, (cause,))


@holds("offsets in 32 bits", level="exhaustive")
def offsets_past_2_to_the_31_are_reached(subject: Subject) -> Iterator[PropertyFailure]:
    """k and v whose second batch row lies more than 2^31 elements after the first, with nothing in between.

    The memory between is reserved and never touched, so that it takes none on a CPU; a GPU takes it all.
    """
    case = next((case for _, case in subject.any_case(batch=2, q_heads=4)), None)
    if case is None:
        return
    inputs = subject.inputs(case)
    sizes = [x[0].numel() for x in (inputs.k, inputs.v)]
    try:
        held = torch.empty(FAR + 2 * sum(sizes), dtype=torch_dtype(case.dtype), device=subject.device)
    except (RuntimeError, MemoryError) as error:
        raise Refused(f"no room to reserve 2^31 elements: {str(error).splitlines()[0]}") from error
    far, start = {}, 0
    for name, size in zip("kv", sizes, strict=True):
        x = getattr(inputs, name)
        row = x[0].contiguous().stride()
        far[name] = held.as_strided(x.shape, (FAR + sum(sizes), *row), start)
        far[name].copy_(x)
        start += size
    asked = changed(inputs, **far)
    answer = answer_or_refusal(subject, asked)
    if isinstance(answer, str):
        raise Refused(answer)
    what = "batch rows 2^31 elements apart"
    cause = "an offset of more than 31 bits is cut off"
    yield from judged(case, subject.reference(inputs), answer, inputs, what, (cause,))
