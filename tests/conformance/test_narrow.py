"""Cases are drawn from what a narrow backend takes; a backend that takes everything gets the ordinary battery."""

from __future__ import annotations

from typing import Any

import pytest

import attnbench as ab
from attnbench.backend import Capabilities, FunctionBackend
from attnbench.conformance import check
from attnbench.conformance.battery import SIZES, Request, battery, ordinary
from attnbench.conformance.battery_factors import MASKS, Row
from attnbench.conformance.narrow import Narrow
from attnbench.problem import Case
from attnbench.problem.condition import Condition
from attnbench.selftest.mutants import MUTANTS
from tests.conformance.functions import right
from tests.conformance.handed.functions import is_decoding, that_takes


def drawn(takes: Any, capabilities: Capabilities = Capabilities(), **changes: Any) -> tuple[list[Case], int]:
    """The cases of a standard battery and its narrow addition; how many rows were asked for."""
    request = Request("bf16", "fwd", capabilities, "flash", MASKS, "cpu", "standard", **changes)
    asked = 0

    def computes(case: Case) -> bool:
        nonlocal asked
        asked += 1
        return bool(takes(case))

    accepted = [(row, case) for row, case in ordinary(request) if computes(case)]
    rows: list[Row] = [row for row, _ in accepted]
    more = list(Narrow(request, computes).further(rows, SIZES["standard"] - len(rows)))
    return [case for _, case in (*accepted, *more)], asked


@pytest.mark.parametrize(
    ("text", "lengths"),
    [
        ("q_len == 1", 8),
        ("q_len == 1 and k_len % 128 == 0", 5),
        ("mask == 'causal' and q_len == k_len and head_dim == v_dim and head_dim in (64, 128)", 8),
        ("mask == 'full' and q_len % 64 == 0 and k_len % 64 == 0 and scores == ()", 8),
        ("mask == 'full' and batch == 1 and q_len == k_len and q_len in (1, 2, 4, 8, 16)", 4),
        ("head_dim == 128 and v_dim == 128 and q_heads == 32 and kv_heads == 8", 8),
        ("q_len == 1 and head_dim == 576 and v_dim == 512 and kv_heads == 1", 8),
    ],
)
def test_a_narrow_function_gets_a_whole_battery(text: str, lengths: int) -> None:
    cases, _ = drawn(Condition(text).holds)
    assert len(cases) >= SIZES["standard"]
    assert len({(case.q_len, case.k_len) for case in cases}) >= lengths
    assert len({case.id for case in cases}) > SIZES["standard"] // 2


def test_lengths_that_only_a_refusal_mentions_are_tried() -> None:
    request = Request("bf16", "fwd", Capabilities(), "flash", MASKS, "cpu", "standard")
    takes = Condition("q_len == 311 and k_len == 311 and head_dim == 64").holds
    assert Narrow(request, takes).anchor() is None
    anchor = Narrow(request, takes, lambda case: "takes 311 tokens").anchor()
    assert anchor is not None
    assert anchor.lengths == (311, 311)


def test_a_backend_that_takes_nothing_is_given_up() -> None:
    cases, asked = drawn(lambda case: False)
    assert not cases
    assert asked < 2000


def test_a_backend_that_takes_everything_gets_the_ordinary_battery() -> None:
    cases, asked = drawn(lambda case: True)
    assert cases == [case for case, _ in battery("standard", "bf16", "fwd")]
    assert asked == len(cases)


def test_the_same_cases_are_drawn_each_time() -> None:
    takes = Condition("q_len == 1").holds
    assert drawn(takes) == drawn(takes)


@pytest.mark.parametrize("where", ["q_len == 1 and k_len <= 130", lambda c: c.q_len == 1 and c.k_len <= 130])
def test_a_condition_keeps_every_case_to_the_domain(where: Any) -> None:
    report = check(right, dtypes={"bf16"}, where=where, only={"oracle"}, level="smoke", directions={"fwd"})
    assert report.ok, str(report)
    oracle = [o for o in report.outcomes if o.case is not None]
    assert all(o.case.q_len == 1 and o.case.k_len <= 130 for o in oracle if o.case is not None)


def test_a_condition_with_a_case_makes_no_sense() -> None:
    case = Case(q_len=4, k_len=4, q_heads=1, head_dim=16, dtype="fp32")
    with pytest.raises(ab.AttnbenchError, match="drop it, or the case"):
        check(right, case=case, where="q_len == 1")


def test_a_declared_condition_refuses_with_its_clause_and_gets_a_whole_battery() -> None:
    text = "q_len == 1 and k_len % 128 == 0 and batch <= 8"
    can = Capabilities(where=text, backward=False)
    backend = FunctionBackend(that_takes(is_decoding), "declared", can)
    refusal = backend.refuses(Case(q_len=1, k_len=100, q_heads=1, head_dim=16, dtype="fp32"))
    assert refusal is not None
    assert refusal.reason == "takes k_len % 128 == 0 only; k_len is 100"
    cases, _ = drawn(Condition(text).holds, can)
    assert len(cases) >= SIZES["standard"]
    assert len({case.k_len for case in cases}) >= 4


def test_a_backend_that_is_asked_for_decoding_only_is_probed_on_decoding() -> None:
    backend = MUTANTS["slack after the last document"].backend()
    narrow: Any = {"dtypes": ["bf16"], "directions": ["fwd"], "only": ["mask_probe"], "masks": ["documents"]}
    failures = check(backend, where="q_len <= 16", **narrow).failures
    assert failures
    assert all(failure.case.q_len <= 16 for failure in failures)


def test_a_property_that_runs_alone_draws_the_cases_of_the_whole_check() -> None:
    report = check(that_takes(is_decoding), dtypes={"bf16"}, only={"a_batch_row_alone_is_the_same"})
    assert report.ok, str(report)
