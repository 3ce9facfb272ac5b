"""The rates of `check` count what it finds of each mutant and right implementation; in a family, what lives there."""

from __future__ import annotations

from typing import Any

import pytest
from torch import Tensor

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import Backend
from attnbench.conformance import subject
from attnbench.errors import AttnbenchError
from attnbench.problem import Case, Inputs, Mask, Score
from attnbench.problem.condition import Condition
from attnbench.report.selftest import check_cells, document
from attnbench.selftest.check_rates import (
    FAMILIES,
    References,
    check_mutants,
    check_right_ones,
    first_failure,
)
from attnbench.selftest.counts import ALL_CASES, Count, Tally, missed_by_check
from attnbench.selftest.mutants import MUTANTS, Mutant, TiledBackend
from attnbench.selftest.mutants.right import RIGHT
from attnbench.selftest.plan import full_plan, missed_targets


def planted(*names: str) -> list[Mutant]:
    return [MUTANTS[name] for name in names]


def test_a_check_ends_at_its_first_failure_and_explains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def counted(inputs: Inputs, *arguments: Any) -> object:
        made.append(inputs.case.id)
        return original(inputs, *arguments)

    original = subject.reference_of
    monkeypatch.setattr(subject, "reference_of", counted)
    references: References = {}
    failure = first_failure(MUTANTS["no scale"].backend(), "bf16", "smoke", references=references)
    assert failure is not None
    assert (failure.causes, failure.smallest, failure.command) == ((), None, "")
    assert made == 3 * [failure.case.id]  # by flash, and by the two contracts that might allow it
    first_failure(MUTANTS["zeros"].backend(), "bf16", "smoke", references=references)
    assert made == 3 * [failure.case.id]  # the second check has the first one's references


def test_shared_references_are_of_the_inputs_as_drawn() -> None:
    references: References = {}
    assert first_failure(MUTANTS["q scaled in place"].backend(), "bf16", "smoke", references=references)
    assert first_failure(TiledBackend("right"), "bf16", "smoke", references=references) is None


def test_only_mutants_that_can_show_in_a_family_count_there() -> None:
    tally = check_mutants(
        "bf16", "smoke", family="causal training", mutants=planted("no scale", "window one too long")
    )
    assert tally.checks["causal training", "smoke", "bf16"] == Count({"no scale"}, {"no scale"})
    assert "causal" in tally.reasons["bf16 | no scale | causal training | smoke"]


def test_a_mutant_that_is_missed_among_all_cases_is_named() -> None:
    tally = check_mutants("bf16", "smoke", mutants=planted("zeros", "16-bit column index"))
    assert missed_by_check(tally) == {"all cases, smoke, bf16": ["16-bit column index"]}
    assert missed_targets(tally) == []  # smoke has no target


def test_every_verdict_on_a_right_implementation_counts() -> None:
    tally = check_right_ones("fp32", "smoke", seeds=(3,), rights=RIGHT[:1])
    count = tally.check_alarms[ALL_CASES, "smoke", "fp32"]
    assert count.alarms == set()
    assert len(count.tried) > 6


@pytest.mark.parametrize(("found", "is_reached"), [(148, True), (147, True), (146, False)])
def test_check_at_standard_is_held_to_98_of_100(found: int, is_reached: bool) -> None:
    names = [str(n) for n in range(150)]
    tally = Tally(checks={(ALL_CASES, "standard", "bf16"): Count(set(names[:found]), set(names))})
    assert (missed_targets(tally) == []) is is_reached


def test_the_document_begins_with_the_rates_of_check() -> None:
    tally = Tally(
        checks={
            ("decode", "standard", "bf16"): Count({"a"}, {"a", "b"}),
            (ALL_CASES, "standard", "bf16"): Count({"a", "b"}, {"a", "b"}),
        },
        check_alarms={(ALL_CASES, "standard", "bf16"): Count(set(), {"c"})},
    )
    assert [row[:4] for row in check_cells(tally)] == [
        [ALL_CASES, "standard", "bf16", "2 of 2"],
        ["decode", "standard", "bf16", "1 of 2"],
    ]
    text = document(tally)
    assert text.index("| decode | standard | bf16 | 1 of 2 |") < text.index("## The judge on the trials")
    assert "- decode, standard, bf16: b" in text


def test_the_full_form_checks_all_cases_and_each_family() -> None:
    jobs = {(job.family, job.dtype) for job in full_plan() if job.kind == "check" and job.level == "standard"}
    assert jobs >= {(family, "bf16") for family in (ALL_CASES, *FAMILIES)}
    assert jobs >= {(ALL_CASES, dtype) for dtype in ("bf16", "fp16", "fp32")}


def as_function(backend: Backend, condition: str) -> FunctionBackend:
    """The forward of a mutant as a plain function that refuses all but the cases of a condition."""
    holds = Condition(condition).holds

    def attend(
        q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: tuple[Score, ...], scale: float
    ) -> Tensor:
        case = Case(
            batch=q.shape[0],
            q_len=q.shape[2],
            k_len=k.shape[2],
            q_heads=q.shape[1],
            kv_heads=k.shape[1],
            head_dim=q.shape[3],
            v_dim=v.shape[3],
            dtype={"torch.bfloat16": "bf16", "torch.float16": "fp16", "torch.float32": "fp32"}[str(q.dtype)],  # type: ignore[arg-type]
            mask=mask,
            scores=scores,
            scale=scale,
        )
        if q.requires_grad or not holds(case):
            raise NotImplementedError("decode only")
        inputs = Inputs(case=case, q=q, k=k, v=v, dout=None, scores=scores, seed=-1, distribution="randn")
        return backend.prepare(case, inputs).forward().out

    return FunctionBackend(attend, backend.name)


def test_a_function_that_refuses_the_rest_is_found_as_its_family_is() -> None:
    mutant = MUTANTS["keys of batch row 0 for all"]
    function = as_function(mutant.backend(), FAMILIES["decode"])
    assert first_failure(function, "bf16", "smoke") is not None
    assert first_failure(mutant.backend(), "bf16", "smoke", "decode") is not None


def test_a_level_that_does_not_exist_is_refused() -> None:
    with pytest.raises(AttnbenchError, match="no level"):
        first_failure(TiledBackend("right"), "bf16", "thorough")
