"""The self-test counts kills and false alarms right, and the judge reaches its target rates in the small form."""

from __future__ import annotations

import pytest

from attnbench.faults.causes import CAUSES, Guess
from attnbench.report.selftest import cells, document
from attnbench.selftest.counts import Count, Tally, interval, only_killers, survivors, table
from attnbench.selftest.criteria import CLASSIC, NO_LSE, OURS
from attnbench.selftest.diagnosis import Diagnosis, diagnose_mutants
from attnbench.selftest.kills import kill_mutants, try_right_ones
from attnbench.selftest.mutants import MUTANTS
from attnbench.selftest.mutants.right import RIGHT
from attnbench.selftest.plan import (
    FRESH_SEEDS,
    SMALL_MUTANTS,
    Job,
    full_plan,
    missed_targets,
    run_job,
    small_plan,
)
from attnbench.selftest.trials import TRIALS

PLAIN = [trial for trial in TRIALS if trial.name == "plain"]
BOTH = "fwd_bwd"


def planted(*names: str) -> list:  # type: ignore[type-arg]
    return [MUTANTS[name] for name in names]


def killed(tally: Tally, criterion: str, direction: str = BOTH, dtype: str = "bf16") -> set[str]:
    return tally.kills[criterion, dtype, direction].alarms


def test_a_fault_of_the_gradients_is_killed_by_them_alone() -> None:
    tally = kill_mutants("bf16", PLAIN, mutants=planted("dq without scale", "no scale"))
    assert killed(tally, OURS) == {"dq without scale", "no scale"}
    assert killed(tally, OURS, "fwd") == {"no scale"}
    assert tally.kills[OURS, "bf16", "fwd"].tried == {"no scale"}


def test_a_wrong_lse_counts_only_for_a_judge_that_sees_the_lse() -> None:
    tally = kill_mutants("bf16", PLAIN, mutants=planted("LSE in base 2"))
    assert killed(tally, OURS) == {"LSE in base 2"}
    assert not tally.kills.get((NO_LSE, "bf16", BOTH), Count()).tried
    assert killed(tally, "allclose 1e-2") == set()  # it ignores the LSE


def test_a_criterion_that_rejects_the_right_one_kills_nothing() -> None:
    tally = kill_mutants("bf16", PLAIN, mutants=planted("zeros"))
    # assert_close's tolerances are below bf16's own rounding of a gradient.
    right = try_right_ones("bf16", PLAIN, rights=RIGHT[:1])
    assert right.false_alarms["assert_close", "bf16", BOTH].alarms
    assert killed(tally, "assert_close") == set()
    assert killed(tally, OURS) == {"zeros"}


def test_what_a_mutant_changes_in_place_is_not_seen_by_the_next() -> None:
    tally = kill_mutants("fp32", PLAIN, mutants=planted("q scaled in place", "fallback to another kernel"))
    assert tally.reasons["fp32 | fallback to another kernel"].startswith("protocol: ")


def test_a_right_answer_is_a_verdict_for_each_implementation_trial_and_seed() -> None:
    tally = try_right_ones("fp32", PLAIN, seeds=(3, 4), rights=RIGHT[:3])
    count = tally.false_alarms[OURS, "fp32", BOTH]
    assert len(count.tried) == 6
    assert count.alarms == set()


def test_the_interval_is_clopper_and_pearsons() -> None:
    # With no alarm in n, the upper end is 1 - (0.05 / 2)^(1 / n).
    assert interval(0, 300) == pytest.approx((0.0, 1 - 0.025 ** (1 / 300)))
    assert interval(122, 122) == pytest.approx((0.025 ** (1 / 122), 1.0))


def a_tally(kills: int, of: int, alarms: int, right: int) -> Tally:
    def count(n: int, of: int, name: str = "{}") -> Count:
        return Count({name.format(i) for i in range(n)}, {name.format(i) for i in range(of)})

    key = (OURS, "bf16", BOTH)
    return Tally({key: count(kills, of)}, {key: count(alarms, right, "right {} | plain | seed 101")})


def test_tallies_add_up_without_counting_a_verdict_twice() -> None:
    tally = a_tally(3, 5, 0, 10)
    tally.add(a_tally(4, 5, 1, 12))
    (row,) = table(tally)
    assert (row["kills"], row["kills_of"], row["false_alarms"], row["false_alarms_of"]) == (4, 5, 1, 12)
    assert survivors(tally) == {"bf16": ["4"]}


@pytest.mark.parametrize(
    ("tally", "is_reached"),
    [
        (a_tally(120, 122, 0, 1000), True),
        (a_tally(119, 122, 0, 1000), False),
        (a_tally(122, 122, 2, 2000), True),
        (a_tally(122, 122, 3, 2000), False),
    ],
)
def test_the_targets_are_120_of_122_kills_and_one_alarm_in_a_thousand(tally: Tally, is_reached: bool) -> None:
    assert (missed_targets(tally) == []) is is_reached


def test_a_trial_that_alone_kills_a_mutant_is_named() -> None:
    tally = Tally(killers={"bf16": {"a": ["x"], "b": ["x", "y"], "c": ["y", "y"]}})
    assert only_killers(tally, "bf16") == {"x": ["a"], "y": ["c"]}


def test_a_cause_that_is_named_second_is_right_and_third_is_not() -> None:
    named = [Guess("scale", "a"), Guess("layout", "b")]
    tally = Tally(
        diagnoses={
            "bf16": [
                Diagnosis("no scale", "scale", "plain", tuple(named)),
                Diagnosis("zeros", "layout", "plain", tuple(named)),
                Diagnosis("other", "sink", "plain", tuple(named)),
            ]
        }
    )
    assert "2 of 3" in missed_targets(tally)[0]
    text = document(tally)
    assert "named first on 1, first or second on 2" in text
    assert "- other: sink; named: scale, layout" in text


def test_every_guess_is_of_a_known_cause() -> None:
    from attnbench.conformance.diagnosis.diagnosis import OF_DISTRIBUTION, OF_WORDS

    causes = [cause for cause, _ in OF_WORDS.values()]
    causes += [cause for each in OF_DISTRIBUTION.values() for cause, _ in each]
    assert set(causes) <= CAUSES
    diagnoses = diagnose_mutants(
        "bf16", planted("causal strict", "GQA head 0", "dq without scale"), TRIALS[:1]
    )
    assert {guess.cause for d in diagnoses for guess in d.guesses} <= CAUSES
    assert [d.is_right for d in diagnoses] == [True, True, True]


def test_the_full_form_has_five_fresh_seeds_and_fifteen_right_implementations() -> None:
    plan = full_plan()
    seen = {(job.dtype, job.seeds[0]) for job in plan if job.kind == "right" and len(job.trials) >= 45}
    assert {dtype for dtype, _ in seen} == {"bf16", "fp16", "fp32"}
    assert len({seed for _, seed in seen}) >= 5
    assert min(FRESH_SEEDS) >= 100  # the judge was developed on smaller ones
    assert len(RIGHT) >= 15


def test_the_small_form_names_trials_that_exist() -> None:
    names = {trial.name for trial in TRIALS}
    assert set(SMALL_MUTANTS) <= names
    assert all(set(job.trials) <= names for job in small_plan())


def test_the_document_holds_the_table_and_the_survivors() -> None:
    tally = a_tally(119, 122, 0, 1000)
    text = document(tally)
    assert "119 of 122" in text
    assert "120, 121" in text  # the survivors, by name
    assert "- bf16: 1000 implementations, 1 trials, seed 101" in text
    assert cells(tally)[0][:3] == [OURS, "bf16", "forward and backward"]
    assert set(CLASSIC).isdisjoint(row[0] for row in cells(tally))


@pytest.mark.slow
def test_the_judge_reaches_its_targets_in_the_small_form() -> None:
    tally = Tally()
    for job in small_plan():
        tally.add(run_job(job))
    assert missed_targets(tally) == []


def test_a_job_runs_its_trials_only() -> None:
    events: list[str] = []
    tally = run_job(Job("right", "fp32", ("two tokens",), (101,)), events.append)
    assert events == ["fp32: two tokens"]
    assert all("two tokens" in name for name in tally.false_alarms[OURS, "fp32", BOTH].tried)
