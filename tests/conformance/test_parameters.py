"""A parameter that is kept, taken for "not given" or for a number, and a gradient that another input decides on."""

from __future__ import annotations

import pytest

from attnbench.backend import FunctionBackend
from attnbench.conformance import check
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.subject import Refused, Subject
from tests.conformance.handed.functions import Function
from tests.conformance.handed.parameters import FAULTS, MASKS, SCALES, SCORES, SOME, reading, right

TAKEN = ("causal", "window", "padding", "prefix")  # to be quick


def subject_of(function: Function, dtype: str = "bf16") -> Subject:
    return Subject(FunctionBackend(function, "function"), dtype=dtype, masks=TAKEN)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_reading_a_parameter_is_found_and_named(name: str) -> None:
    make, finds, cause = FAULTS[name]
    failures = list(PROPERTIES[finds].run(subject_of(make())))
    assert failures
    assert cause in failures[0].causes[0], failures
    causes = [f.causes for f in failures if f.causes]
    assert len(set(causes)) == len(causes)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
@pytest.mark.parametrize("name", [MASKS, SCALES, SCORES, SOME])
def test_a_right_function_reads_its_parameters(name: str, dtype: str) -> None:
    assert list(PROPERTIES[name].run(subject_of(right, dtype))) == []


@pytest.mark.parametrize(
    "name", ["softcap kept by head dim", "scale 0", "unlimited side is -1", "dv if k asks"]
)
def test_no_other_property_finds_the_fault(name: str) -> None:
    make, finds, _ = FAULTS[name]
    for other in {MASKS, SCALES, SCORES, SOME} - {finds}:
        assert not list(PROPERTIES[other].run(subject_of(make()))), other


def test_a_window_that_a_function_raises_for_is_a_refusal_in_its_words() -> None:
    def raises(mask: object, q: object) -> object:
        if None in (getattr(mask, "left", 0), getattr(mask, "right", 0)):
            raise ValueError("both sides are numbers")
        return mask

    with pytest.raises(Refused, match="both sides are numbers"):
        list(PROPERTIES[MASKS].run(subject_of(reading(mask=raises))))


@pytest.mark.slow  # whole checks
@pytest.mark.parametrize(
    "name", ["softcap kept by head dim", "scale 0", "unlimited side is -1", "dv if k asks"]
)
def test_a_whole_check_tells_the_fault_first(name: str) -> None:
    make, _, cause = FAULTS[name]
    report = check(make(), dtypes={"bf16"})
    assert report.verdict == "wrong"
    assert any(cause in " ".join(f.causes[:2]) for f in report.failures[:2])
