"""A property of attention as a named check, and the two ways to compare: in every bit, or within the noise."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import Tensor

from attnbench.conformance.protocol import same_bits
from attnbench.conformance.subject import Answer, Subject
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


@dataclass(frozen=True)
class Property:
    """A named check. `run` yields its failures, none if the property holds; it may raise Refused or Failed."""

    name: str
    catches: str
    run: Callable[[Subject], Iterator[PropertyFailure]]


def holds(catches: str) -> Callable[[Callable[[Subject], Iterator[PropertyFailure]]], Property]:
    """Make a property, named as the function is, of a function that yields its failures."""
    return lambda run: Property(run.__name__, catches, run)


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
            yield PropertyFailure(
                case, name, at, f"{what}: {name}{list(at)} is {float(got[name][at])}, not {float(want[at])}"
            )


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
