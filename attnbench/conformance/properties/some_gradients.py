"""A gradient does not depend on which other inputs ask for one: each subset of the inputs gives those of all.

A frozen layer, a cached key or an adapter asks for the gradients of some inputs only, and a backward may look at the
wrong input to decide what it computes. It concerns backends whose gradients come from autograd.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations

from torch import Tensor

from attnbench.backend.differentiable import AutogradPrepared
from attnbench.backend.interface import Gradients
from attnbench.conformance.properties.changed_scores import with_scores
from attnbench.conformance.properties.property import PropertyFailure, Tried, holds
from attnbench.conformance.protocol import memory_poisoned
from attnbench.conformance.subject import Answer, Refused, Subject
from attnbench.judge.reference import Reference
from attnbench.judge.verdict import judge
from attnbench.problem import Bias, Inputs, RelativeBias, Sink

QKV = ("q", "k", "v")
SOME_OF_QKV = tuple(names for n in (1, 2) for names in combinations(QKV, n))
SCORES = (
    ((Bias("hqk"), Sink()),),
    ((Bias("hqk"),), (Sink(),), (RelativeBias("t5(32,128,bidirectional)"),)),
)


@holds("a gradient that is left out, or wrong, when another input asks for none")
def some_gradients_are_those_of_all(subject: Subject) -> Iterator[PropertyFailure]:
    """Where only some of q, k, v and the tensors of score changes require a gradient, each gets the one it should."""
    if not subject.backward:
        return
    case = subject.typical_case()
    if case is None:
        return
    tried = Tried(subject)
    inputs = subject.inputs(case)
    if not isinstance(subject.backend.prepare(case, inputs), AutogradPrepared):
        raise Refused("its gradients do not come from autograd")
    yield from _subsets(subject, tried, inputs, SOME_OF_QKV)
    for choices in SCORES:
        computed = False
        for scores in choices:
            scored = with_scores(inputs, *scores)
            kinds = tuple(score.kind for score in scores)
            before = subject.answers
            yield from _subsets(subject, tried, scored, (*((kind,) for kind in kinds), QKV))
            computed = computed or subject.answers > before
        if computed:
            break
    yield from tried.settle()


def _subsets(
    subject: Subject, tried: Tried, inputs: Inputs, subsets: tuple[tuple[str, ...], ...]
) -> Iterator[PropertyFailure]:
    """The first fault among the subsets of the inputs that require a gradient, with the other subsets that have one."""
    whole = tried.answer(inputs)
    if whole is None or whole.gradients is None:
        return
    reference = subject.reference(inputs)
    wrong = judge(reference, whole.output, whole.gradients, inputs).wrong  # told by other checks
    faults: dict[str, PropertyFailure] = {}
    for names in subsets:
        alone = " and ".join(names)
        cause = (
            f"the backward decides by another input what it computes, if {alone} alone asks for a gradient"
        )
        text = f"if only {alone} require{'s' * (len(names) == 1)} a gradient"
        for name, reason in _faults(subject, inputs, names, reference, whole):
            if name not in wrong:
                faults.setdefault(
                    alone, PropertyFailure(inputs.case, name, (), f"{text}: {reason}", causes=(cause,))
                )
    for first, *others in [list(faults)] if faults else []:
        also = f"; so too with {', '.join(others)} alone" if others else ""
        yield replace(faults[first], reason=faults[first].reason + also)


def _faults(
    subject: Subject, inputs: Inputs, names: tuple[str, ...], reference: Reference, whole: Answer
) -> Iterator[tuple[str, str]]:
    """What is wrong with the gradients of these inputs alone: a tensor, and the reason."""
    prepared = subject.backend.prepare(inputs.case, inputs)
    assert isinstance(prepared, AutogradPrepared)
    assert inputs.dout is not None
    assert whole.gradients is not None
    try:
        with memory_poisoned():
            some = prepared.gradients_of(names, inputs.dout)
    except Exception as error:  # noqa: BLE001 - any exception of a backend is a failure of that backend
        yield "", f"raises {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        return
    verdict = judge(reference, whole.output, _with(whole.gradients, some), inputs)
    for name, wrong in verdict.wrong.items():
        if name in some:
            yield name, wrong.reason


def _with(gradients: Gradients, some: dict[str, Tensor | None]) -> Gradients:
    """The gradients with some of them replaced, by name."""
    named = {name: x for name, x in some.items() if name in ("dq", "dk", "dv")}
    of_scores = {name: x for name, x in some.items() if name not in named}
    return replace(gradients, **named, scores=gradients.scores | of_scores)  # type: ignore[arg-type]
