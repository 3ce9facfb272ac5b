"""Accepted regressions pass within their size and date, and mistakes in the file are named."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import AttnbenchError
from attnbench.gate import Finding, Gate, Ratio, accepting, read_accepted

TODAY = date(2026, 11, 21)
ENTRY = """
[[accepted]]
backend = "nai*"
case = "q512-*"
kind = "slower"
pass = "bwd"
up_to = 1.15
reason = "delta in float32"
expires = 2027-01-31
"""


def slower(point: float = 1.1, **changes: Any) -> Finding:
    fields: dict[str, Any] = {"kind": "slower", "case": "q512-k512", "backend": "naive", "which": "bwd"}
    return Finding(**(fields | {"message": "is slower", "ratio": Ratio(point, 1.0, point)} | changes))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "accepted.toml").write_text(ENTRY)
    return tmp_path / "accepted.toml"


def judged(file: Path, finding: Finding, today: date = TODAY) -> Gate:
    return accepting(Gate((finding,), 0.05), read_accepted(file), today)


def test_an_accepted_regression_passes_and_is_told_with_its_reason(file: Path) -> None:
    verdict = judged(file, slower())
    assert verdict.exit_code(strict=True) == 0
    assert verdict.findings[0].kind == "accepted"
    assert "until 2027-01-31 (delta in float32)" in verdict.findings[0].message


@pytest.mark.parametrize(
    "finding",
    [
        slower(1.2),
        slower(which="fwd"),
        slower(backend="flex"),
        slower(case="q256-k256"),
        slower(kind="wrong"),
        slower(kind="bigger"),
    ],
    ids=["larger", "another pass", "another backend", "another case", "wrong", "another kind"],
)
def test_what_is_not_covered_fails(file: Path, finding: Finding) -> None:
    assert judged(file, finding).exit_code() == 1


def test_an_acceptance_ends(file: Path) -> None:
    verdict = judged(file, slower(), date(2027, 2, 1))
    assert verdict.exit_code() == 1
    assert "its acceptance ended on 2027-01-31" in verdict.findings[0].message


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ('kind = "slower"', 'kind = "wrong"', "kind is one of"),
        ("expires = 2027-01-31", "", "expires is missing"),
        ("expires = 2027-01-31", 'expires = "soon"', "expires is a date"),
        ("up_to = 1.15", "up_to = 0.9", "up_to is head over base"),
        ('reason = "delta in float32"', 'raeson = "x"', "did you mean 'reason'"),
        ('pass = "bwd"', 'pass = "backward"', "pass is fwd or bwd"),
        ('kind = "slower"', 'kind = "bigger"', "pass applies to slower and missing only"),
        ('kind = "slower"', 'kind = "missing"', "up_to applies to slower only"),
        ("[[accepted]]", "[accepted]", r"begins with \[\[accepted\]\]"),
        ("[[accepted]]", "[[accepted", "cannot be read as TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(file: Path, before: str, after: str, message: str) -> None:
    file.write_text(ENTRY.replace(before, after))
    with pytest.raises(AttnbenchError, match=message):
        read_accepted(file)
