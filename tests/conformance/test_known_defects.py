"""A declared defect excuses what it declares and nothing else; those of bundled backends are really there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnbench.backend import KnownDefect, Prepared, resolve
from attnbench.backend.registry import entries
from attnbench.cli.check import exit_code
from attnbench.conformance import check
from attnbench.conformance.diagnosis.observation import observe
from attnbench.conformance.known import settle_known_defects
from attnbench.conformance.outcome import CheckOutcome, Failure
from attnbench.conformance.report import RIGHT, Report
from attnbench.conformance.subject import Subject
from attnbench.problem import Case, Inputs
from tests.conformance.functions import Careful

MANY_KEYS = Case(q_len=64, k_len=2049, q_heads=1, head_dim=64, dtype="bf16", direction="fwd_bwd")
MANY_QUERIES = Case(q_len=2049, k_len=64, q_heads=1, head_dim=64, dtype="bf16", direction="fwd_bwd")
# Backend and key of each declared defect: case and tensor on which it is seen (docs/findings.md).
SEEN = {
    ("sdpa_flash", "oracle:cancelling_dq"): (MANY_KEYS, "dq"),
    ("sdpa_flash", "oracle:sign_flipped_dout"): (MANY_QUERIES, "dk"),
    ("torch_mha", "oracle:cancelling_dq"): (MANY_KEYS, "dq"),
    ("torch_mha", "oracle:sign_flipped_dout"): (MANY_QUERIES, "dk"),
    ("mask_multiply", "oracle:near_constant_v"): (replace(MANY_KEYS, dtype="fp16"), "dq"),
    ("mask_multiply", "oracle:randn"): (
        replace(MANY_KEYS, q_len=2, k_len=33_000, head_dim=32, dtype="fp16"),
        "dq",
    ),
}


def test_every_declared_defect_is_tested() -> None:
    here = [entry.name for entry in entries() if entry.available and not entry.environment]
    declared = {(name, key) for name in here for key in resolve(name).known_defects}
    assert declared == set(SEEN)


@pytest.mark.parametrize(("name", "key"), SEEN)
def test_a_declared_defect_is_there_and_in_nothing_else(name: str, key: str) -> None:
    backend = resolve(name)
    defect, (case, tensor) = backend.known_defects[key], SEEN[name, key]
    if not defect.is_in(backend.version()):
        pytest.skip(f"declared for {defect.versions}, and this is {backend.version()}")
    assert defect.shows(case)
    subject = Subject(backend, dtype=case.dtype, contract=backend.capabilities.contract)
    verdict = observe(subject, subject.inputs(case, key.partition(":")[2])).verdict
    assert verdict.errors[tensor].over_budget > 3
    assert set(verdict.wrong) <= defect.tensors


STRICT = KnownDefect(reason="masks strictly", link="https://example.org/1", versions="<2")


class Known(Careful):
    fault = {"strict": True}
    known_defects = dict.fromkeys(("oracle", "protocol"), STRICT)

    def version(self) -> str:
        return "careful 1.2.0+cpu"


def test_a_known_defect_does_not_fail_the_check_and_is_told() -> None:
    report = check(Known(), level="smoke")
    assert not report.failures
    assert "with 2 known defects" in str(report)
    assert "known defect, oracle: masks strictly (https://example.org/1; versions <2)" in str(report)
    assert {o.status for o in report.outcomes if o.check == "oracle"} >= {"known"}


def test_a_known_defect_that_is_gone_fails_the_check() -> None:
    backend = Known()
    backend.fault = {}
    report = check(backend, level="smoke")
    assert not report.ok
    assert set(report.gone) == {"oracle", "protocol"}
    assert "known defect gone, oracle: it passes now" in str(report)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"versions": ">=2"},
        {"devices": frozenset({"cuda"})},
        {"shows": lambda case: case.batch > 1 << 20},
        {"tensors": frozenset({"dq"})},
    ],
    ids=["version", "device", "case", "tensor"],
)
def test_a_known_defect_excuses_nothing_beyond_its_declaration(elsewhere: dict[str, Any]) -> None:
    backend = Known()
    backend.known_defects = {"oracle": replace(STRICT, **elsewhere)}
    report = check(backend, level="smoke")
    assert any(f.check == "oracle" for f in report.failures)
    assert not report.known
    assert not report.gone


def test_a_known_defect_of_a_tensor_excuses_that_tensor_and_no_exception() -> None:
    backend = Known()
    backend.known_defects = {"oracle": replace(STRICT, tensors=frozenset({"out"}))}
    assert check(backend, level="smoke", only="oracle").known

    class Raises(Known):
        def prepare(self, case: Case, inputs: Inputs) -> Prepared:
            raise RuntimeError("no such kernel")

    broken = Raises()
    broken.known_defects = backend.known_defects
    report = check(broken, level="smoke", only="oracle")
    assert any("no such kernel" in f.reason for f in report.failures)
    assert not report.known
    assert not report.gone


def test_a_known_defect_of_one_distribution_excuses_no_other() -> None:
    backend = Known()
    backend.known_defects = {"oracle:negative_lse": STRICT}
    report = check(backend, level="smoke")
    assert report.known
    failed = {f.distribution for f in report.failures if f.check == "oracle"}
    assert failed
    assert "negative_lse" not in failed


def test_an_unparsable_version_is_taken_for_a_defective_one() -> None:
    assert STRICT.is_in("unknown")
    assert STRICT.is_in("torch 1.13.1+cpu")
    assert not STRICT.is_in("torch 2.0.0")


@pytest.mark.parametrize(
    ("versions", "version", "is_in", "is_beyond"),
    [
        (">=2.11,<=2.15.0", "torch 2.10.0", False, False),
        (">=2.11,<=2.15.0", "torch 2.15.0+cu132", True, False),
        (">=2.11,<=2.15.0", "torch 2.15.1", False, True),
        (">=2.11,<2.16", "torch 2.16.0", False, False),  # 2.16 mended it
        ("==2.13.*", "torch 2.13.2", True, False),
        ("==2.13.*", "torch 2.14.0", False, True),
        ("==2.13.*", "torch 2.12.0", False, False),
    ],
)
def test_a_range_says_what_was_tried(versions: str, version: str, is_in: bool, is_beyond: bool) -> None:
    defect = replace(STRICT, versions=versions)
    assert (defect.is_in(version), defect.is_beyond(version)) == (is_in, is_beyond)


def _report(*tensors: str) -> Report:
    """A check in which one case is right and another has these tensors wrong."""
    report = Report("known", "smoke", "cpu", 0, "flash", is_restricted=True)
    of_oracle: dict[str, Any] = {
        "check": "oracle",
        "case": MANY_KEYS,
        "distribution": "randn",
        "reason": "off",
    }
    report.outcomes = [CheckOutcome(**of_oracle, dtype="bf16", status="ok")]
    if tensors:
        report.outcomes.append(CheckOutcome(**of_oracle, dtype="bf16", status="wrong", tensors=tensors))
        report.failures = [Failure(**of_oracle, seed=0, tensors=tensors)]
    return report


LATER = replace(STRICT, versions=">=1,<=1.1", tensors=frozenset({"dq"}))


def test_a_known_defect_in_a_later_version_than_was_tried_is_told_and_fails_a_strict_check_only() -> None:
    backend, report = Known(), _report("dq")
    backend.known_defects = {"oracle": LATER}
    settle_known_defects(backend, report)
    assert (report.verdict, report.known) == (RIGHT, {})
    assert "the known defect, not yet declared for this version, oracle: masks strictly" in str(report)
    assert "right, with 1 known defect" in str(report)
    assert set(report.to_json()["undeclared"]) == {"oracle"}
    assert (exit_code(report.to_json()), exit_code(report.to_json(), strict=True)) == (0, 1)


def test_a_defect_that_a_later_version_than_was_tried_lacks_is_not_asked_for() -> None:
    backend, report = Known(), _report()
    backend.known_defects = {"oracle": LATER}
    settle_known_defects(backend, report)
    assert (report.verdict, report.gone, report.undeclared) == (RIGHT, {}, {})


def test_another_failure_in_a_later_version_than_was_tried_is_a_failure() -> None:
    backend, report = Known(), _report("dq", "dk")
    backend.known_defects = {"oracle": LATER}
    settle_known_defects(backend, report)
    assert report.failures
    assert not report.undeclared
