"""A comparison sorts by effect and lists what cannot be compared."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.gate import compare


def test_the_largest_effect_comes_first_whichever_its_direction(
    result: Any, result_set: Any, rounds: Any
) -> None:
    base = result_set(*(result(name) for name in ("same", "slower", "faster")))
    head = result_set(
        result("same"),
        result("slower", samples_ms={"fwd": rounds(1.5)}),
        result("faster", samples_ms={"fwd": rounds(0.25)}),
    )
    comparison = compare(base, head)
    assert [change.case for change in comparison.changes] == ["faster", "slower", "same"]
    assert [change.sure for change in comparison.changes] == [True, True, False]
    assert comparison.changes[0].ratio.point == pytest.approx(0.25)


def test_means_are_geometric_and_by_backend_and_pass(result: Any, result_set: Any, rounds: Any) -> None:
    base = result_set(result("a"), result("b"), result("a", "flex"))
    head = result_set(
        result("a", samples_ms={"fwd": rounds(2.0)}),
        result("b", samples_ms={"fwd": rounds(0.5)}),
        result("a", "flex"),
    )
    means = compare(base, head).means
    assert means["naive", "fwd"].mean == pytest.approx(1.0)
    assert means["naive", "fwd"].spread == pytest.approx(2 ** (2**0.5))
    assert means["flex", "fwd"].count == 1


def test_means_are_by_mask_too(result: Any, result_set: Any, rounds: Any) -> None:
    causal = {"case": {**result().case, "mask": "causal"}}
    base = result_set(result("a"), result("b", **causal))
    head = result_set(
        result("a", samples_ms={"fwd": rounds(2.0)}), result("b", samples_ms={"fwd": rounds(0.5)}, **causal)
    )
    means = {key: mean.mean for key, mean in compare(base, head).mask_means.items()}
    assert means == pytest.approx({("naive", "full", "fwd"): 2.0, ("naive", "causal", "fwd"): 0.5})


def test_changed_statuses_and_lone_cases_are_said(result: Any, result_set: Any) -> None:
    base = result_set(result("a"), result("gone"))
    head = result_set(result("a", status="wrong", reason="off"), result("new"))
    comparison = compare(base, head)
    assert [(s.base, s.head, s.reason) for s in comparison.statuses] == [("ok", "wrong", "off")]
    assert [r.case_id for r in comparison.pairs.only_base] == ["gone"]
    assert [r.case_id for r in comparison.pairs.only_head] == ["new"]
    assert comparison.changes == ()


def test_unlike_machines_may_be_compared_and_it_is_said(result: Any, result_set: Any) -> None:
    comparison = compare(result_set(result()), result_set(result(environment="there")))
    assert comparison.unlike == ("threads: 2 and 64",)
    assert len(comparison.changes) == 1
