"""The kill rate and the false-alarm rate of `check` itself: of all cases, and of the cases of one family.

A check of a mutant ends at its first failure, and nothing is explained; checks of one dtype share their references.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import torch

from attnbench.backend.interface import Backend, Capabilities
from attnbench.conformance.battery import Request, ordinary
from attnbench.conformance.battery_factors import MASKS
from attnbench.conformance.checks import ChecksOfDtype
from attnbench.conformance.conformance import settle_contracts
from attnbench.conformance.diagnosis.observation import Observation
from attnbench.conformance.explain import Explainer
from attnbench.conformance.known import settle_known_defects
from attnbench.conformance.outcome import OK, WRONG, Failure
from attnbench.conformance.plan import EXHAUSTIVE_CHECKS, plan_of
from attnbench.conformance.protocol import clocks_watched
from attnbench.conformance.report import Report
from attnbench.conformance.subject import ReferenceKey
from attnbench.judge.reference import Reference
from attnbench.problem import Case
from attnbench.problem.case import DIRECTIONS
from attnbench.problem.condition import Condition
from attnbench.selftest.counts import ALL_CASES, Count, Tally
from attnbench.selftest.mutants import MUTANTS, Mutant
from attnbench.selftest.mutants.right import RIGHT, Right

# Family -> the condition that a case of it meets: what kernels that take only a slice are written for.
FAMILIES = {
    "decode": "q_len <= 16",
    "causal training": "mask == 'causal' and q_len == k_len",
    "encoder with padding": "mask_kinds == ('padding',) and q_len == k_len",
    "cross-attention": "q_len > 16 and q_len != k_len and mask_kinds in (('full',), ('padding',))",
    "packed documents": "mask_kinds in (('documents',), ('causal', 'documents')) and q_len == k_len",
    "prefix": "mask_kinds == ('prefix',) and q_len == k_len",
}
FORWARD_ONLY = {"decode"}  # families
FINEST = "fp32"  # its noise hides least
References = dict[ReferenceKey, Reference]


class _Found(Exception):
    """The first failure of a check, which ends it."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


class _EndsAtFirst(Explainer):
    def explain(self, failure: Failure, observation: Observation | None = None) -> Failure:
        raise _Found(failure)


class _ExplainsNothing(Explainer):
    def explain(self, failure: Failure, observation: Observation | None = None) -> Failure:
        return failure


def _run(
    explainer: type[Explainer],
    backend: Backend,
    dtype: str,
    level: str,
    where: str | Callable[[Case], bool] | None,
    references: References,
    seed: int = 0,
    directions: tuple[str, ...] = DIRECTIONS,
    finds_contract: bool = False,
) -> Report:
    """The checks of one dtype as `check` runs them, but for what follows a failure."""
    plan = plan_of(
        backend, level=level, device="cpu", seed=seed, dtypes=(dtype,), where=where, directions=directions
    )
    plan = replace(plan, finds_contract=plan.finds_contract or (finds_contract and plan.contract == "flash"))
    report = Report(backend.name, level, plan.device, seed, plan.contract)
    with clocks_watched(), torch.random.fork_rng(devices=[]):
        checks = ChecksOfDtype(plan, report, dtype)
        checks.subject.references = references
        checks.explainer = explainer(plan, checks.subject, report)
        checks.run()
        settle_contracts([checks], report)
    settle_known_defects(backend, report)
    return report


def first_failure(
    backend: Backend,
    dtype: str,
    level: str = "standard",
    family: str = ALL_CASES,
    references: References | None = None,
) -> Failure | None:
    """The first failure of a check, as of a plain function that declares no contract; None if it is right.

    Only this dtype is checked, unless another contract than flash is taken in it: that has to fit every dtype.
    """
    references = {} if references is None else references
    check = partial(
        _run, _EndsAtFirst, backend, level=level, where=FAMILIES.get(family), references=references
    )
    check = partial(check, directions=directions_of(family), finds_contract=True)
    try:
        if check(dtype).not_flash:
            for other in sorted(backend.capabilities.dtypes - {dtype}):
                check(other)
    except _Found as found:
        return found.failure
    return None


def directions_of(family: str) -> tuple[str, ...]:
    return ("fwd",) if family in FORWARD_ONLY else DIRECTIONS


def check_mutants(
    dtype: str,
    level: str = "standard",
    *,
    family: str = ALL_CASES,
    mutants: Sequence[Mutant] | None = None,
    on_event: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Check every mutant of a dtype; within a family only those count that live there."""
    if mutants is None:
        mutants = [m for m in MUTANTS.values() if dtype in m.dtypes and "cpu" in m.devices]
    if level != "exhaustive":
        mutants = [m for m in mutants if m.found_by not in EXHAUSTIVE_CHECKS]
    tally, count = Tally(), Count()
    references: References = {}
    missed = []
    if family != ALL_CASES:
        mutants = [m for m in mutants if any(m.can_show(case) for case in _cases_of(family))]
    for mutant in mutants:
        failure = first_failure(mutant.backend(), dtype, level, family, references)
        if failure is None:
            missed.append(mutant)
            continue
        count.alarms.add(mutant.name)
        name = " | ".join((dtype, mutant.name, family, level))
        tally.reasons[name] = (
            f"{failure.check} on {failure.case.id}, {failure.distribution}: {failure.reason}"
        )
        on_event(name)
    count.tried |= count.alarms | {m.name for m in missed if family == ALL_CASES}
    references = {}
    for mutant in missed if family != ALL_CASES else ():
        if lives(mutant, family, dtype, references):
            count.tried.add(mutant.name)
    tally.checks[family, level, dtype] = count
    return tally


@functools.cache
def _cases_of(family: str) -> tuple[Case, ...]:
    """The ordinary cases of an exhaustive check of the family."""
    holds = Condition(FAMILIES[family]).holds
    requests = [
        Request(FINEST, direction, Capabilities(), "flash", MASKS, "cpu", "exhaustive", holds)
        for direction in directions_of(family)
    ]
    return tuple(case for request in requests for _, case in ordinary(request))


def lives(mutant: Mutant, family: str, dtype: str, references: References | None = None) -> bool:
    """Whether an exhaustive check of the family shows the mutant: in the finest dtype, but for low precision.

    A rounding that the noise of the dtype hides is no fault there, however large it is in a finer one.
    """
    if FINEST in mutant.dtypes and mutant.cause != "low precision":
        dtype = FINEST
    return first_failure(mutant.backend(), dtype, "exhaustive", family, references) is not None


def check_right_ones(
    dtype: str,
    level: str = "standard",
    *,
    seeds: Sequence[int] = (0,),
    rights: Sequence[Right] = RIGHT,
    on_event: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Check every right implementation, but for cases on which its library is wrong; count each verdict."""
    tally, count = Tally(), Count()
    for seed in seeds:
        references: References = {}
        for right in rights:
            where = None if not right.defect else lambda case, right=right: not right.is_defective(case)
            report = _run(_ExplainsNothing, right.make(), dtype, level, where, references, seed)
            for outcome in report.outcomes:
                if outcome.status not in (OK, WRONG):
                    continue
                what = (right.name, outcome.check, outcome.case_id, outcome.distribution, f"seed {seed}")
                name = " | ".join(what)
                count.tried.add(name)
                if outcome.status == WRONG:
                    count.alarms.add(name)
                    tally.reasons[f"{dtype} | {name}"] = outcome.reason
            on_event(f"{dtype}: {right.name}, seed {seed}")
    tally.check_alarms[ALL_CASES, level, dtype] = count
    return tally
