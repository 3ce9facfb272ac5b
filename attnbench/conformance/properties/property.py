"""A property of attention as a named check, and the two ways to compare: in every bit, or within the noise."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from torch import Tensor

from attnbench.backend.differentiable import FunctionBackend
from attnbench.conformance.protocol import same_bits
from attnbench.conformance.subject import Answer, Failed, Raised, Refused, Subject
from attnbench.judge.reference import Reference
from attnbench.judge.verdict import LARGEST, judge
from attnbench.problem import Case, Inputs


@dataclass(frozen=True)
class PropertyFailure:
    """Where a property does not hold: the case, the tensor and the index."""

    case: Case
    tensor: str
    worst: tuple[int, ...]
    reason: str
    error_over_budget: float = LARGEST
    distribution: str = "randn"
    causes: tuple[str, ...] = ()
    is_bitwise: bool = False  # bits of two calls differ: a fault only if the same call gives the same bits


@dataclass(frozen=True)
class Property:
    """A named check. `run` yields its failures, none if the property holds; it may raise Refused or Failed.

    `level` is the first at which it runs: standard or exhaustive.
    """

    name: str
    catches: str
    run: Callable[[Subject], Iterator[PropertyFailure]]
    level: str = "standard"


def holds(
    catches: str, level: str = "standard"
) -> Callable[[Callable[[Subject], Iterator[PropertyFailure]]], Property]:
    """Make a property, named as the function is, of a function that yields its failures."""
    return lambda run: Property(run.__name__, catches, run, level)


class Tried:
    """Answers to cases out of the ordinary, which a backend may refuse one by one.

    An exception of a plain function counts as a refusal, that of another backend as a failure, and that of a backward
    whose forward comes as a failure of either; `settle` tells them at the end, when the other cases have been asked.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.raised: list[str] = []
        self.without_backward: list[PropertyFailure] = []

    def answer(self, inputs: Inputs) -> Answer | None:
        """The answer, or None if the backend does not take the case or raises."""
        case = inputs.case
        if self.subject.where is not None and not self.subject.where(case):
            return None
        try:
            return self.subject.answer(inputs)
        except Refused:
            return None
        except Raised as error:
            words = str(error)
        if case.needs_backward:
            alone = replace(inputs, case=replace(case, direction="fwd"), dout=None)
            with suppress(Refused, Raised):
                self.subject.answer(alone)
                kinds = " and ".join(score.kind for score in case.scores) or "mask"
                cause = f"the {kinds} of an earlier call is kept, or none is read: autograd does not reach it"
                causes = (cause,) if "used in the graph" in words else ()
                reason = f"the forward comes, and the backward {words}"
                self.without_backward.append(PropertyFailure(case, "", (), reason, causes=causes))
                return None
        self.raised.append(f"{words} ({case.id})")
        return None

    def settle(self) -> Iterator[PropertyFailure]:
        """The failures of backwards; then Refused or Failed with the words of the first exception, if there was one."""
        yield from once_per_cause(self.without_backward)
        if self.raised:
            is_function = isinstance(self.subject.backend, FunctionBackend)
            raise (Refused if is_function else Failed)(self.raised[0])


def once_per_cause(failures: Iterable[PropertyFailure]) -> Iterator[PropertyFailure]:
    """The failures without those whose causes one before has."""
    told: set[tuple[str, ...]] = set()
    for failure in failures:
        if not failure.causes or failure.causes not in told:
            told.add(failure.causes)
            yield failure


def kept_words(what: str) -> str:
    """The cause of an answer that does not change with a parameter."""
    key = f"a cache or a compiled kernel has no {what} in its key"
    return f"the {what} of an earlier call is kept ({key}), or none is read"


def first_difference(a: Tensor, b: Tensor) -> tuple[int, ...] | None:
    """The index of the first element that differs; 0 and -0 are equal, and so are two NaN."""
    if same_bits(a, b):
        return None
    different = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(different.any()):
        return None
    return tuple(int(i) for i in different.nonzero()[0])


def differing_bits(
    case: Case, got: dict[str, Tensor], wanted: dict[str, Tensor], what: str
) -> Iterator[PropertyFailure]:
    for name, want in wanted.items():
        at = first_difference(got[name], want)
        if at is not None:
            words = f"{what}: {name}{list(at)} is {float(got[name][at])}, not {float(want[at])}"
            yield PropertyFailure(case, name, at, words, is_bitwise=True)


def judged(
    case: Case,
    reference: Reference,
    answer: Answer,
    inputs: Inputs,
    what: str,
    causes: tuple[str, ...] = (),
) -> Iterator[PropertyFailure]:
    verdict = judge(reference, answer.output, answer.gradients, inputs)
    for name, error in verdict.wrong.items():
        reason = f"{what}: {error.reason}"
        yield PropertyFailure(case, name, error.worst, reason, error.over_budget, inputs.distribution, causes)
