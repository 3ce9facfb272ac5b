"""The page's part on trust: agreement, the worst case, the spread and the notes, on made-up results."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from typing import Any

import pytest
import typer

from attnbench.cli.app import app
from attnbench.report.frame import frame
from attnbench.report.labels import with_families
from attnbench.report.page.rows import roofs_of
from attnbench.report.page.trust import WORST, agreements, furthest, furthest_off, noises, remarks
from attnbench.sweep.result import Result
from tests.page.sets import a_result


def a_table(*results: Result) -> Any:
    return with_families(frame(results))


def wrong(backend: str, over: float | None = 37.0, **more: Any) -> Result:
    errors = {} if over is None else {"out": {"over_budget": over, "worst": [0, 1, 2, 3]}}
    fields = {"status": "wrong", "reason": "off", "errors": errors, "error_over_budget": over}
    return a_result(backend, **(fields | more))


def test_a_cell_is_the_worst_case_of_its_mask_and_tensor() -> None:
    far = {"out": {"over_budget": 0.5}, "dq": {"over_budget": 0.9}}
    table = a_table(
        a_result("one"),
        a_result("one", length=512, errors=far, error_over_budget=0.9),
        a_result("one", length=1024),
        a_result("one", mask="full"),
        wrong("two"),
        a_result("two", mask="full", status="refused", reason="has no such mask"),
        a_result("idle", status="refused", reason="has no such mask"),
    )
    by_tensor = {one.tensor: one for one in agreements(table)}
    assert list(by_tensor) == [WORST, "out", "lse", "dq"]
    assert by_tensor[WORST].masks == ("causal", "full")
    texts = {b: [cell.text for cell in cells] for b, cells in by_tensor[WORST].cells.items()}
    assert texts == {"one": ["0.90", "0.25"], "two": ["✗ 37.0", "refused"]}
    assert [cell.kind for cell in by_tensor[WORST].cells["one"]] == ["right3", "right1"]
    assert "q512-" in by_tensor[WORST].cells["one"][0].title
    assert [cell.text for cell in by_tensor["out"].cells["one"]] == ["0.50", "0.25"]
    assert [cell.text for cell in by_tensor["dq"].cells["one"]] == ["0.90", "–"]


def test_what_changes_its_inputs_is_wrong_without_a_figure() -> None:
    changes = wrong("changes", None, reason="changes its inputs in place")
    (cell,) = agreements(a_table(changes))[0].cells["changes"]
    assert (cell.text, cell.kind) == ("✗ wrong", "wrong")
    shown = furthest(furthest_off([changes]))
    assert shown is not None
    assert (shown.distance, shown.reason) == ("wrong", "changes its inputs in place")


def test_the_furthest_is_what_is_wrong_by_most_and_else_what_is_right_by_least() -> None:
    near, far = a_result("near"), a_result("far", error_over_budget=0.8)
    named = [wrong("by much", 40.0), wrong("by little", 2.0), wrong("changes", None)]
    refused = a_result("idle", status="refused")
    for results, name in (
        ([near, far, refused], "far"),
        ([near, far, *named], "by much"),
        ([far, named[2]], "changes"),
    ):
        for order in (results, results[::-1]):
            result = furthest_off(order)
            assert result is not None
            assert result.backend == name
    assert furthest_off([refused]) is None
    shown = furthest(far)
    assert shown is not None
    assert shown.distance == "0.80 of what is allowed, so it is right"


@pytest.mark.parametrize("name", ["naive", 'a\'b $(touch x) "c".py:f'])
def test_the_command_that_shows_it_again_is_one_that_the_program_takes(name: str) -> None:
    result = replace(wrong(name, distribution="large", contract="dense"), seed=7)
    shown = furthest(result)
    assert shown is not None
    program, *words = shlex.split(shown.command)
    assert program == "attnbench"
    command: Any = typer.main.get_command(app)
    read = command.commands[words[0]].make_context("show", words[1:]).params
    case = json.loads(read["case"])
    assert {field: case[field] for field in ("q_len", "mask", "dtype")} == {
        "q_len": 256,
        "mask": "causal",
        "dtype": "fp32",
    }
    assert read["backend"] == name
    assert (read["seed"], read["distribution"], read["contract"]) == (7, "large", "dense")


def test_the_spread_is_half_of_the_middle_span_over_the_median() -> None:
    calm = a_result("calm", samples_ms={"fwd": [[5.0, 5.0, 5.0]]})
    # 10 % of 1 to 11 is 2, 90 % is 10, the median 6.
    wild = [a_result("wild", samples_ms={"fwd": [[float(n) for n in range(1, 12)]]}), a_result("wild")]
    spreads = noises(a_table(*wild, calm, wrong("bad")))
    assert [one.backend for one in spreads] == ["calm", "wild"]
    assert spreads[0].largest == 0
    assert spreads[1].passes == 2
    assert spreads[1].largest == pytest.approx(4 / 6)
    assert spreads[1].largest_on == wild[0].case_id


def test_what_the_sweep_noted_is_counted_the_most_frequent_first() -> None:
    table = a_table(a_result("one", notes=["rare", "often"]), a_result("two", length=512, notes=["often"]))
    assert remarks(table) == [("often", 2, "one, two"), ("rare", 1, "one")]


def test_the_roofs_are_those_of_where_most_was_measured() -> None:
    table = a_table(a_result(), a_result(length=512), a_result(length=1024, environment="there"))
    here, there = {"copy_bytes_per_s": 1.0, "other": 5.0}, {"copy_bytes_per_s": 2.0}
    assert roofs_of(table, {"here": {"roofs": here}, "there": {"roofs": there}}) == {"copy_bytes_per_s": 1.0}
    assert roofs_of(table, {"there": {"roofs": there}}) == {"copy_bytes_per_s": 2.0}
    assert roofs_of(table, {}) == {}
