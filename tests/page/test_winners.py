"""The winner of a case, cases without a clear winner, and sets compared; on made-up results."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.gate import ResultSet
from attnbench.report.frame import frame
from attnbench.report.labels import with_families
from attnbench.report.page.compared import compared
from attnbench.report.page.overview import square, verdicts
from attnbench.report.ranking import Winner, winners
from attnbench.sweep.result import Result
from tests.page.sets import a_result, a_set, small_set


def the_winner(*results: Result) -> Winner:
    (winner,) = winners(with_families(frame(results)))
    return winner


def test_the_fastest_wins_by_the_ratio_to_the_next_one() -> None:
    winner = the_winner(a_result("slow", 3.0), a_result("quick", 1.0), a_result("next", 1.5, seed=2))
    assert winner.tied == ("quick",)
    assert winner.rival == "next"
    assert winner.ratio is not None
    assert winner.ratio.low is not None
    assert winner.ratio.low < winner.ratio.point == pytest.approx(1.5, rel=0.02)


def test_there_is_no_clear_winner_if_the_interval_reaches_one() -> None:
    winner = the_winner(a_result("one", 1.0), a_result("two", 1.0, seed=2), a_result("far", 2.0, seed=3))
    assert sorted(winner.tied) == ["one", "two"]
    assert not winner.is_clear
    shown = square(winner, {})
    assert (shown.kind, shown.backend) == ("tied", "")
    assert "far" not in shown.detail


def test_no_clear_winner_stands_beside_the_interval_that_reaches_one() -> None:
    # `steady` is the next one and surely behind; `wild` is further behind in the middle, but may be as fast.
    times = {
        "quick": [1.0, 1.001, 1.002, 1.003, 1.004, 1.005, 1.006],
        "steady": [1.1, 1.101, 1.102, 1.103, 1.104, 1.105, 1.106],
        "wild": [0.7, 0.8, 0.9, 1.2, 1.4, 1.5, 1.6],
    }
    results = [a_result(name, samples_ms={"fwd": [[ms] for ms in some]}) for name, some in times.items()]
    winner = the_winner(*results)
    assert (winner.tied, winner.rival) == (("quick", "wild"), "wild")
    shown = square(winner, {})
    low, high = map(float, shown.interval.split("–"))
    assert low <= 1 <= high


def test_there_is_no_clear_winner_of_too_few_samples() -> None:
    one = a_result("one", samples_ms={"fwd": [[1.0, 1.0]]})
    winner = the_winner(one, a_result("two", samples_ms={"fwd": [[9.0, 9.0]]}))
    assert winner.tied == ("one", "two")
    assert square(winner, {}).interval == "too few samples"


@pytest.mark.parametrize(
    "changes",
    [{"status": "wrong"}, {"status": "refused"}, {"samples_ms": {}, "notes": ["an interpreter"]}],
    ids=["wrong", "refused", "never timed"],
)
def test_only_what_is_right_and_timed_can_win(changes: dict[str, Any]) -> None:
    winner = the_winner(a_result("quick", 0.001, **changes), a_result("plain", 1.0))
    assert winner.tied == ("plain",)
    assert winner.ratio is None
    assert the_winner(a_result("quick", 0.001, **changes)).tied == ()


def test_training_is_won_by_forward_and_backward_together() -> None:
    ahead = {"fwd": [[1.0]] * 8, "bwd": [[9.0]] * 8}
    behind = {"fwd": [[2.0]] * 8, "bwd": [[3.0]] * 8}
    winner = the_winner(
        a_result("ahead", direction="fwd_bwd", samples_ms=ahead),
        a_result("whole", direction="fwd_bwd", samples_ms=behind),
    )
    assert winner.tied == ("whole",)
    assert winner.fastest_ms == 5.0


def test_the_verdicts_count_right_wrong_and_refused() -> None:
    table = with_families(frame(small_set().results))
    by_backend = {one.backend: one for one in verdicts(table, winners(table))}
    assert by_backend["quick"].sentence == "right on 12 of 12 cases"
    assert (by_backend["quick"].clear, by_backend["plain"].clear) == (12, 0)
    assert by_backend["bad"].sentence == "right on 0 of 12 cases, wrong on 12"
    assert by_backend["idle"].sentence == "refused all 12 cases"
    assert by_backend["slow"].timed == 0


def test_sets_without_a_common_case_are_not_compared_and_the_page_says_so() -> None:
    comparison = compared(a_set([a_result()], "one"), a_set([a_result(length=512)], "two"), {}, ([], []))
    assert comparison.verdict == ""
    assert "no case in common" in comparison.refusal


def test_sets_of_unlike_machines_are_compared_and_the_differences_listed() -> None:
    base, head = a_set([a_result()], "one"), a_set([a_result("naive", 2.0, environment="there")], "two")
    comparison = compared(base, head, {}, ([], []))
    assert comparison.ratios[0].ratio == "2.00x"
    assert any("threads" in text for text in comparison.unlike)
    assert "would refuse" in comparison.refusal
    same = compared(base, ResultSet(base.results, base.environments, "same"), {}, ([], []))
    assert (same.kind, same.refusal) == ("fine", "")


def test_a_wrong_answer_makes_the_comparison_fail() -> None:
    wrong = a_result(status="wrong", reason="off", error_over_budget=2.0)
    comparison = compared(a_set([a_result()]), a_set([wrong]), {}, ([], []))
    assert comparison.kind == "failed"
    assert comparison.others[0][0] == "wrong"
