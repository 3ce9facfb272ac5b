"""Does the self-test count what it says it counts, and does the judge keep its promise in the small form?"""

from __future__ import annotations

import pytest

from attnbench.conformance.diagnosis.causes import CAUSES, Guess
from attnbench.report.selftest import cells, document
from attnbench.selftest.counts import Count, Part, interval, only_killers, survivors, table
from attnbench.selftest.criteria import CLASSIC, NO_LSE, OURS
from attnbench.selftest.diagnosis import Diagnosis, diagnose_mutants
from attnbench.selftest.kills import kill_mutants, try_right_ones
from attnbench.selftest.mutants import MUTANTS
from attnbench.selftest.mutants.right import RIGHT
from attnbench.selftest.plan import (
    FRESH_SEEDS,
    SMALL_MUTANTS,
    Job,
    broken_promises,
    full_plan,
    run_job,
    small_plan,
)
from attnbench.selftest.trials import TRIALS

PLAIN = [trial for trial in TRIALS if trial.name == "plain"]
BOTH = "fwd_bwd"


def planted(*names: str) -> list:  # type: ignore[type-arg]
    return [MUTANTS[name] for name in names]


def killed(part: Part, criterion: str, direction: str = BOTH, dtype: str = "bf16") -> set[str]:
    return part.kills[criterion, dtype, direction].alarms


def test_a_fault_of_the_gradients_is_killed_by_them_alone() -> None:
    part = kill_mutants("bf16", PLAIN, mutants=planted("dq without scale", "no scale"))
    assert killed(part, OURS) == {"dq without scale", "no scale"}
    assert killed(part, OURS, "fwd") == {"no scale"}
    assert part.kills[OURS, "bf16", "fwd"].asked == {"no scale"}


def test_a_wrong_lse_is_asked_only_of_those_who_return_one() -> None:
    part = kill_mutants("bf16", PLAIN, mutants=planted("LSE in base 2"))
    assert killed(part, OURS) == {"LSE in base 2"}
    assert not part.kills.get((NO_LSE, "bf16", BOTH), Count()).asked
    assert killed(part, "allclose 1e-2") == set()  # it does not look at the LSE


def test_whoever_accuses_the_right_one_finds_nothing() -> None:
    part = kill_mutants("bf16", PLAIN, mutants=planted("zeros"))
    # assert_close's tolerances are below bf16's own rounding of a gradient.
    right = try_right_ones("bf16", PLAIN, rights=RIGHT[:1])
    assert right.false_alarms["assert_close", "bf16", BOTH].alarms
    assert killed(part, "assert_close") == set()
    assert killed(part, OURS) == {"zeros"}


def test_what_a_mutant_changes_in_place_is_not_seen_by_the_next() -> None:
    part = kill_mutants("fp32", PLAIN, mutants=planted("q scaled in place", "fallback to another kernel"))
    assert part.reasons["fp32 | fallback to another kernel"].startswith("protocol: ")


def test_a_right_answer_is_a_verdict_for_each_implementation_trial_and_seed() -> None:
    part = try_right_ones("fp32", PLAIN, seeds=(3, 4), rights=RIGHT[:3])
    count = part.false_alarms[OURS, "fp32", BOTH]
    assert len(count.asked) == 6
    assert count.alarms == set()


def test_the_interval_is_clopper_and_pearsons() -> None:
    # With no alarm in n, the upper end is 1 - (0.05 / 2)^(1 / n).
    assert interval(0, 300) == pytest.approx((0.0, 1 - 0.025 ** (1 / 300)))
    assert interval(122, 122) == pytest.approx((0.025 ** (1 / 122), 1.0))


def a_part(kills: int, of: int, alarms: int, right: int) -> Part:
    def count(n: int, of: int, name: str = "{}") -> Count:
        return Count({name.format(i) for i in range(n)}, {name.format(i) for i in range(of)})

    key = (OURS, "bf16", BOTH)
    return Part({key: count(kills, of)}, {key: count(alarms, right, "right {} | plain | seed 101")})


def test_parts_add_up_without_counting_a_verdict_twice() -> None:
    part = a_part(3, 5, 0, 10)
    part.add(a_part(4, 5, 1, 12))
    (row,) = table(part)
    assert (row["kills"], row["kills_of"], row["false_alarms"], row["false_alarms_of"]) == (4, 5, 1, 12)
    assert survivors(part) == {"bf16": ["4"]}


@pytest.mark.parametrize(
    ("part", "is_kept"),
    [
        (a_part(120, 122, 0, 1000), True),
        (a_part(119, 122, 0, 1000), False),
        (a_part(122, 122, 2, 2000), True),
        (a_part(122, 122, 3, 2000), False),
    ],
)
def test_the_promise_is_120_of_122_and_one_alarm_in_a_thousand(part: Part, is_kept: bool) -> None:
    assert (broken_promises(part) == []) is is_kept


def test_an_input_that_alone_kills_a_mutant_is_named() -> None:
    part = Part(killers={"bf16": {"a": ["x"], "b": ["x", "y"], "c": ["y", "y"]}})
    assert only_killers(part, "bf16") == {"x": ["a"], "y": ["c"]}


def test_a_cause_that_is_named_second_is_right_and_third_is_not() -> None:
    named = [Guess("scale", "a"), Guess("layout", "b")]
    part = Part(
        diagnoses={
            "bf16": [
                Diagnosis("no scale", "scale", "plain", tuple(named)),
                Diagnosis("zeros", "layout", "plain", tuple(named)),
                Diagnosis("other", "sink", "plain", tuple(named)),
            ]
        }
    )
    assert "2 of 3" in broken_promises(part)[0]
    text = document(part)
    assert "named first on 1, first or second on 2" in text
    assert "- other: sink; named: scale, layout" in text


def test_every_guess_is_of_a_known_cause() -> None:
    from attnbench.conformance.diagnosis.diagnosis import OF_DISTRIBUTION, OF_WORDS

    causes = [cause for cause, _ in OF_WORDS.values()]
    causes += [cause for each in OF_DISTRIBUTION.values() for cause, _ in each]
    assert set(causes) <= CAUSES
    found = diagnose_mutants("bf16", planted("causal strict", "GQA head 0", "dq without scale"), TRIALS[:1])
    assert {guess.cause for d in found for guess in d.guesses} <= CAUSES
    assert [d.is_right for d in found] == [True, True, True]


def test_the_full_form_is_as_large_as_promised() -> None:
    plan = full_plan()
    seen = {(job.dtype, job.seeds[0]) for job in plan if job.kind == "right" and len(job.trials) >= 45}
    assert {dtype for dtype, _ in seen} == {"bf16", "fp16", "fp32"}
    assert len({seed for _, seed in seen}) >= 5
    assert min(FRESH_SEEDS) >= 100  # calibration looked at smaller ones
    assert len(RIGHT) >= 15


def test_the_small_form_names_trials_that_exist() -> None:
    known = {trial.name for trial in TRIALS}
    assert set(SMALL_MUTANTS) <= known
    assert all(set(job.trials) <= known for job in small_plan())


def test_the_document_holds_the_table_and_what_was_missed() -> None:
    part = a_part(119, 122, 0, 1000)
    text = document(part)
    assert "119 of 122" in text
    assert "120, 121" in text  # the survivors, by name
    assert "- bf16: 1000 implementations, 1 trials, seed 101" in text
    assert cells(part)[0][:3] == [OURS, "bf16", "forward and backward"]
    assert set(CLASSIC).isdisjoint(row[0] for row in cells(part))


@pytest.mark.slow
def test_the_judge_keeps_its_promise_in_the_small_form() -> None:
    part = Part()
    for job in small_plan():
        part.add(run_job(job))
    assert broken_promises(part) == []


def test_a_job_runs_its_trials_only() -> None:
    heard: list[str] = []
    part = run_job(Job("right", "fp32", ("two tokens",), (101,)), heard.append)
    assert heard == ["fp32: two tokens"]
    assert all("two tokens" in name for name in part.false_alarms[OURS, "fp32", BOTH].asked)
