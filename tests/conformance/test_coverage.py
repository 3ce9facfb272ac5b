"""A verdict is one of three words, and `right` stands on enough cases, factors and properties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attnbench.conformance.coverage import FEWEST_CASES, coverage, shortfall
from attnbench.conformance.outcome import CheckOutcome, Failure
from attnbench.conformance.report import Report
from attnbench.problem import Case

Make = Callable[..., Case]


def outcome(case: Case | None, check: str = "oracle", status: str = "ok", reason: str = "") -> CheckOutcome:
    dtype = "fp32" if case is None else case.dtype
    return CheckOutcome(
        check=check, case=case, dtype=dtype, distribution="randn", status=status, reason=reason
    )


def enough(a_case: Make, count: int = FEWEST_CASES["standard"], **changes: Any) -> list[CheckOutcome]:
    """Outcomes in which lengths, batch and head dims vary, and a property."""
    cases = [
        a_case(**({"q_len": 8 + n, "batch": 1 + n % 2, "head_dim": 8 + 8 * (n % 2)} | changes))
        for n in range(count)
    ]
    return [*map(outcome, cases), outcome(None, "mask_probe")]


def test_enough_lacks_nothing(a_case: Make) -> None:
    assert shortfall(enough(a_case), "standard") == []
    assert shortfall(enough(a_case), "exhaustive")
    assert shortfall([], "smoke") == []


def test_too_few_cases_of_a_dtype_are_a_shortfall(a_case: Make) -> None:
    few = enough(a_case, 19)
    assert shortfall(few, "standard") == ["19 cases in fp32, fewer than 20"]
    assert shortfall([*enough(a_case), *enough(a_case, 3, dtype="bf16")], "standard") == [
        "3 cases in bf16, fewer than 20"
    ]
    again = [*few, few[0]]  # the same case twice is one
    assert shortfall(again, "standard") == ["19 cases in fp32, fewer than 20"]


def test_what_is_refused_or_raises_at_a_limit_is_no_case(a_case: Make) -> None:
    more = [outcome(a_case(k_len=99 + n), status=s) for n, s in enumerate(("refused", "limit"))]
    assert shortfall([*enough(a_case, 19), *more], "standard") == ["19 cases in fp32, fewer than 20"]


def test_too_few_factors_are_a_shortfall(a_case: Make) -> None:
    one = enough(a_case, batch=1, head_dim=8)
    assert shortfall(one, "standard") == ["only lengths took two values, fewer than 3 factors"]


def test_no_property_is_a_shortfall(a_case: Make) -> None:
    alone = enough(a_case)[:-1]
    assert shortfall(alone, "standard") == ["no property and no protocol check ran"]
    assert shortfall([*alone, outcome(None, "mask_probe", "refused")], "standard")
    assert shortfall([*alone, outcome(a_case(), "protocol")], "standard") == []


def test_a_factor_has_a_line_with_what_was_taken_and_what_was_refused_in_which_words(a_case: Make) -> None:
    outcomes = [
        outcome(a_case()),
        outcome(a_case(k_len=32)),
        outcome(a_case(head_dim=256), status="refused", reason="head dims to 128"),
        outcome(
            a_case(head_dim=256, batch=2), status="refused", reason="head dims and batch"
        ),  # not one factor
        outcome(a_case(k_len=32, batch=3), status="refused", reason="one batch row"),
    ]
    lines = {entry.factor: str(entry)[13:] for entry in coverage(outcomes)}
    assert lines["lengths"] == "16x16, 16x32"
    assert lines["head dims"] == "8; refused 256: head dims to 128"
    assert lines["batch"] == "1; refused 3: one batch row"
    assert lines["mask"] == "full"


@pytest.mark.parametrize(
    ("is_restricted", "passed", "failed", "verdict"),
    [
        (False, 20, 0, "right"),
        (False, 3, 0, "too little checked"),
        (True, 3, 0, "right"),
        (True, 0, 0, "too little checked"),
        (False, 0, 0, "too little checked"),
        (False, 20, 1, "wrong"),
        (True, 3, 1, "wrong"),
    ],
)
def test_the_verdict_is_one_of_three_words(
    a_case: Make, is_restricted: bool, passed: int, failed: int, verdict: str
) -> None:
    report = Report("mine", "standard", "cpu", 0, "flash", is_restricted=is_restricted)
    report.outcomes = enough(a_case, passed) if passed else []
    failure = Failure(check="oracle", case=a_case(), distribution="randn", seed=0, reason="off")
    report.failures = [failure] * failed
    assert report.verdict == verdict
    assert report.ok is (verdict == "right")
    assert report.to_json()["verdict"] == verdict
    assert report.to_json()["shortfall"] == report.shortfall
    assert str(report).startswith(f"mine: {verdict.upper() if failed else verdict}")


def test_a_thin_report_says_what_it_lacks(a_case: Make) -> None:
    report = Report("mine", "standard", "cpu", 0, "flash", outcomes=enough(a_case, 3))
    assert "too little: 3 cases in fp32, fewer than 20" in str(report)
    assert "lengths      8x16, 9x16, 10x16" in str(report)
