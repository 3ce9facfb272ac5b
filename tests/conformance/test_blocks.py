"""Failures with one cause are told once, in few lines, without an empty place."""

from __future__ import annotations

import re
from typing import Any

import pytest

from attnbench.conformance import check
from attnbench.conformance.blocks import blocks
from attnbench.conformance.outcome import CheckOutcome, Failure
from attnbench.conformance.report import Report
from attnbench.problem import Case
from tests.conformance.functions import with_fault

TAIL, OTHER = "the last, ragged tile of 16 keys is left out", "keys are those of another page"


def a_failure(*causes: str, k_len: int = 64, **changes: Any) -> Failure:
    case = Case(q_len=4, k_len=k_len, q_heads=1, head_dim=16, dtype=changes.pop("dtype", "fp32"))
    fields: dict[str, Any] = {
        "check": "oracle",
        "distribution": "randn",
        "seed": 0,
        "tensor": "out",
        "reason": f"out[0, 0, 1, {k_len % 16}] is {k_len}.5 instead of -0.25, 3e+03 times its noise",
        "tensors": ("out",),
        "causes": causes,
        "command": f"attnbench check mine.py:f --case '{k_len}'",
    }
    return Failure(case=case, **(fields | changes))


def a_report(*failures: Failure) -> Report:
    report = Report("mine", "standard", "cpu", 0, "flash", failures=list(failures))
    report.outcomes = [
        CheckOutcome(check=f.check, case=f.case, dtype=f.case.dtype, distribution="randn", status="wrong")
        for f in failures
    ]
    return report


def test_one_cause_is_one_block_with_the_smallest_case() -> None:
    failures = [a_failure(TAIL, OTHER), a_failure(OTHER, TAIL, k_len=32), a_failure(TAIL, k_len=128)]
    (block,) = blocks(failures)
    assert block.causes == (TAIL, OTHER)
    assert block.shown.case.k_len == 32
    assert str(a_report(*failures)).count("attnbench check") == 1


def test_the_size_of_a_tile_makes_no_other_cause_but_another_bug_does() -> None:
    tile, head = TAIL.replace("16", "32"), "key heads are tiled"
    assert [len(b.failures) for b in blocks([a_failure(TAIL), a_failure(TAIL), a_failure(tile)])] == [3]
    found = blocks([a_failure(TAIL), a_failure(TAIL), a_failure(head)])
    assert [b.causes for b in found] == [(TAIL,), (head,)]


def test_exceptions_are_told_apart_by_their_words() -> None:
    raised = [a_failure("an exception", reason=f"raises {name}: no", tensors=()) for name in ("A", "B", "A")]
    assert [len(b.failures) for b in blocks(raised)] == [2, 1]


def test_what_was_not_explained_is_counted_with_its_like_and_the_report_says_so() -> None:
    failures = [a_failure(TAIL), *(a_failure(k_len=n) for n in range(65, 90))]
    assert "26 checks (oracle; 1 explained)" in str(a_report(*failures))
    (block,) = blocks([a_failure(k_len=n) for n in range(65, 90)])
    assert (block.causes, len(block.failures)) == ((), 25)


def test_a_long_command_is_shown_only_if_there_is_no_other() -> None:
    table = a_failure(TAIL, k_len=1, command="attnbench check mine.py:f --case '" + "f" * 3000)
    assert blocks([table, a_failure(TAIL)])[0].shown.case.k_len == 64
    assert blocks([table])[0].shown is table


def test_many_causes_take_at_most_fifteen_lines_and_all_are_shown_verbosely() -> None:
    report = a_report(*(a_failure(f"cause {chr(97 + n)}") for n in range(12)))
    assert len(str(report).splitlines()) <= 14  # and one for the picture
    assert "-v shows all" in str(report)
    assert all(f"cause {chr(97 + n)}" in report.text(verbose=True) for n in range(12))


@pytest.mark.parametrize("fault", ["tiled", "unmasked", "strict"])
def test_a_function_with_one_bug_is_told_in_at_most_fifteen_lines(fault: str) -> None:
    small = "batch <= 3 and q_len <= 130 and k_len <= 130 and head_dim <= 64 and v_dim <= 96"
    report = check(with_fault(**{fault: True}), dtypes={"fp32"}, directions={"fwd"}, where=small)
    text = str(report)
    assert report.verdict == "wrong"
    assert len(text.splitlines()) <= 14, text
    commands = re.findall(r"^  again  (.*)$", text, re.MULTILINE)
    assert len(commands) == len(set(commands)) >= 1
    assert "  wrong" not in text
    first = text.splitlines()[3].split(", or ")
    assert len(set(first)) == len(first), "the same cause twice"
