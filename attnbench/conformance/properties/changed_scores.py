"""The scale and the score changes are read at every call: other numbers at the same sizes give another answer.

A cache or a compiled kernel without the cap in its key keeps the first one; a scale, slope or sink of 0 may be taken
for "not given", and a negative scale turns a maximum of unscaled scores into a minimum.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from attnbench.backend.interface import Gradients, Output
from attnbench.conformance.properties.property import (
    PropertyFailure,
    Tried,
    holds,
    judged,
    kept_words,
    once_per_cause,
)
from attnbench.conformance.protocol import same_bits
from attnbench.conformance.subject import Answer, Subject, changed
from attnbench.judge.verdict import judge
from attnbench.problem import ALiBi, Bias, Inputs, RelativeBias, Score, Sink, Softcap
from attnbench.problem.inputs import bound_scores

ORDINARY_SCALE = 0.3
HUGE = 2.0**10
ZERO_SCALE = "a scale of 0 is misread, or multiplies a masked -inf, which gives NaN"


@holds("a scale of 0 taken for 'not given', a negative or huge one, one kept from an earlier call")
def changed_scales_are_read(subject: Subject) -> Iterator[PropertyFailure]:
    """A scale of 0 weighs every key alike; (-q, -scale) and (q / 1024, 1024 scale) give what (q, scale) gives."""
    case = subject.typical_case()
    if case is None:
        return
    tried = Tried(subject)
    yield from once_per_cause(_scales_in_turn(subject, tried, subject.inputs(case)))
    yield from tried.settle()


def _scales_in_turn(subject: Subject, tried: Tried, inputs: Inputs) -> Iterator[PropertyFailure]:
    case = inputs.case
    zero = changed(inputs, case=replace(case, scale=0.0))
    answer = tried.answer(zero)
    if answer is not None:
        failures = list(judged(zero.case, subject.reference(zero), answer, zero, "scale 0", (ZERO_SCALE,)))
        # Another scale tells a 0 that is taken for the default from one that is not read.
        other = changed(inputs, case=replace(case, scale=ORDINARY_SCALE))
        yield from _explained(tried, failures, answer, other, "scale", inputs, "a scale")
    for factor, what, cause in (
        (
            -1.0,
            "(-q, -scale)",
            "a negative scale: its sign is lost, or the maximum is of the unscaled scores",
        ),
        (
            1 / HUGE,
            "(q / 1024, 1024 scale)",
            "a huge scale is clipped, or overflows before the maximum is taken off",
        ),
    ):
        if abs(factor) < 1 and subject.dtype == "fp16":
            continue  # q / 1024 is subnormal
        moved = changed(inputs, case=replace(case, scale=case.softmax_scale / factor), q=factor * inputs.q)
        answer = tried.answer(moved)
        if answer is None:
            continue
        right = _with_dq_times(answer, factor)
        failures = list(judged(case, subject.reference(inputs), right, inputs, what, (cause,)))
        other = changed(moved, case=replace(case, scale=ORDINARY_SCALE))
        for failure in _explained(tried, failures, answer, other, "scale"):
            yield replace(failure, case=moved.case)


def _with_dq_times(answer: Answer, factor: float) -> Answer:
    """The answer with dq of q instead of that of factor q."""
    gradients = answer.gradients
    if gradients is not None:
        gradients = Gradients(factor * gradients.dq, gradients.dk, gradients.dv, gradients.scores)
    return Answer(answer.output, gradients)


def _explained(
    tried: Tried,
    failures: Sequence[PropertyFailure],
    answer: Answer,
    other: Inputs,
    what: str,
    not_given: Inputs | None = None,
    zero: str = "",
) -> Iterator[PropertyFailure]:
    """The first failure with its cause, if that shows.

    `other` has another value, and gives the same bits if neither is read; `not_given` has the default for a zero.
    """
    out = answer.output.out.clone()
    for failure in failures[:1]:  # the forward's if it is wrong
        causes = failure.causes
        another = tried.answer(other)
        if another is not None and same_bits(out, another.output.out):
            causes = (kept_words(what),)
        elif not_given is not None and failure.tensor == "out":
            reference = tried.subject.reference(not_given)
            error = judge(reference, Output(out), answer.gradients, not_given).errors["out"]
            causes = causes if error.is_wrong else (f"{zero} of 0 is taken for 'not given'",)
        yield replace(failure, causes=causes)


@holds(
    "a softcap, slopes, a sink or a bias kept from an earlier call, slopes and sinks of 0 taken for 'not given'"
)
def changed_scores_are_read(subject: Subject) -> Iterator[PropertyFailure]:
    """Another cap, the caller's own slopes, slopes of 0, a sink of 0, a bias of zeros, at one size, are obeyed."""
    case = subject.typical_case()
    if case is None:
        return
    tried = Tried(subject)
    yield from once_per_cause(_scores_in_turn(subject, tried, subject.inputs(case)))
    yield from tried.settle()


def _scores_in_turn(subject: Subject, tried: Tried, inputs: Inputs) -> Iterator[PropertyFailure]:
    case = inputs.case
    own = tuple((0.5, 0.0, 0.03, 1.5)[h % 4] for h in range(case.q_heads))
    zeros = (0.0,) * case.q_heads
    for what, first, *others in (
        ("softcap", Softcap(30.0), Softcap(3.0)),
        ("ALiBi slope", ALiBi(), ALiBi(own), ALiBi(zeros)),
        ("sink", Sink(1.5), Sink(0.0)),
        ("bias", Bias("hqk"), Bias("hqk", std=0.0), Bias("hqk", std=2.0)),
        ("relative bias", RelativeBias("t5(32,128,bidirectional)"), RelativeBias("t5(32,64,bidirectional)")),
    ):
        before = with_scores(inputs, first)
        if tried.answer(before) is None:
            continue
        for other in others:
            asked = with_scores(inputs, other)
            answer = tried.answer(asked)
            if answer is None:
                continue
            text = f"{other} after {first} at the same sizes"
            failures = list(judged(asked.case, subject.reference(asked), answer, asked, text))
            not_given = None
            if other in (ALiBi(zeros), Sink(0.0)):
                not_given = with_scores(inputs, ALiBi()) if isinstance(other, ALiBi) else inputs
            article = "an" if what[0] == "A" else "a"
            yield from _explained(tried, failures, answer, before, what, not_given, f"{article} {what}")
            before = asked


def with_scores(inputs: Inputs, *scores: Score) -> Inputs:
    """The same q, k, v, dO with score changes, their tensors drawn."""
    case = replace(inputs.case, scores=scores)
    bound = (
        s if s.tensor is None else s.bound(s.tensor.to(inputs.device)) for s in bound_scores(scores, case)
    )
    return changed(inputs, case=case, scores=tuple(bound))
