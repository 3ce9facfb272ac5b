"""The stages of a gate report what happened in them. Scripted runners give the answers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest

from attnbench.gate import BackendVersions, Gate, Rule, gate_in_stages
from attnbench.gate.arms import Arm, ArmResult
from attnbench.sweep.result import Result
from attnbench.sweep.suite import Planned

Says = Callable[[str, int], Result]
VERSIONS = BackendVersions("naive", Arm("base", "naive"), Arm("head", "naive"))


class ScriptedRunner:
    """Answers what `says` gives for an arm and group, with the seed of the call."""

    def __init__(self, says: Says) -> None:
        self.says = says

    def run(
        self, planned: Sequence[Planned], arms: Sequence[Arm], group: int, seed: int
    ) -> Iterator[ArmResult]:
        for plan in planned:
            for arm in arms:
                answer = replace(self.says(arm.name, group), case_id=plan.case.id, seed=seed)
                yield ArmResult(arm.name, group, answer)


@pytest.fixture
def gated(a_case: Any) -> Callable[..., Gate]:
    """`gated(says)`: one case in two stages of two groups of processes."""

    def hold(says: Says, **options: Any) -> Gate:
        runner: Any = ScriptedRunner(says)
        return gate_in_stages(
            runner, [Planned(a_case())], [VERSIONS], Rule(0.1, stages=2, groups=2), **options
        )

    return hold


@pytest.mark.parametrize(
    ("arm", "status", "kind", "message"),
    [
        ("head", "timeout", "broken", "is timeout; base is ok"),
        ("head", "wrong", "wrong", "base is ok"),
        ("base", "crashed", "new", "is ok; base is crashed"),
    ],
)
def test_what_happens_in_a_later_group_of_processes_counts(
    gated: Any, result: Any, arm: str, status: str, kind: str, message: str
) -> None:
    verdict = gated(lambda a, group: result(status=status) if (a, group) == (arm, 1) else result())
    assert [finding.kind for finding in verdict.findings] == [kind]
    assert message in verdict.findings[0].message


def test_the_note_names_where_the_minutes_ended(gated: Any, result: Any) -> None:
    verdict = gated(lambda arm, group: result(), minutes=-1.0)
    assert verdict.notes == ("the -1 minutes were over in stage 1, group 1",)
    assert [finding.kind for finding in verdict.findings] == ["inconclusive"]
    assert "no time was left" in verdict.findings[0].message


@pytest.mark.parametrize(
    ("errors", "kinds"),
    [
        ({0: 0.5, 1: 0.5}, {"less accurate", "same"}),
        ({0: 0.5, 1: 0.2}, {"same"}),
        ({0: 0.24, 1: 0.24}, {"same"}),
    ],
    ids=["on each seed", "on one of two", "within a quarter"],
)
def test_a_larger_error_on_every_seed_is_less_accurate(
    gated: Any, result: Any, errors: dict[int, float], kinds: set[str]
) -> None:
    verdict = gated(lambda arm, group: result(error_over_budget=errors[group] if arm == "head" else 0.2))
    assert {finding.kind for finding in verdict.findings} == kinds


def test_an_error_too_small_to_be_seen_in_the_answer_is_the_same(gated: Any, result: Any) -> None:
    verdict = gated(lambda arm, group: result(error_over_budget=0.09 if arm == "head" else 0.01))
    assert {finding.kind for finding in verdict.findings} == {"same"}


def test_memory_has_to_grow_in_every_group(gated: Any, result: Any) -> None:
    def says(arm: str, group: int) -> Result:
        return result(memory_bytes={"fwd_peak": (70 if arm == "head" and group == 0 else 64) << 20})

    assert {finding.kind for finding in gated(says).findings} == {"same"}
    always = gated(lambda arm, group: says(arm, 0)).findings
    assert [finding.kind for finding in always] == ["bigger", "same"]
