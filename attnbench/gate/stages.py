"""Judge and time base and head of each backend side by side, in stages, until each verdict is decided.

The first stage runs every case, a later one only those whose speed is undecided. Correctness, coverage, accuracy
and memory come from the processes of the first stage, speed from the rule of `sequential`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from attnbench.gate.arms import ArmResult, ArmRunner
from attnbench.gate.sequential import Outcome, Rule, decide
from attnbench.gate.touched import BASE_ARM, BackendVersions
from attnbench.gate.verdict import (
    Finding,
    Gate,
    bigger,
    contract_finding,
    contract_width,
    gathered,
    status_finding,
)
from attnbench.statuses import BROKEN, DECLINED
from attnbench.sweep.result import Result
from attnbench.sweep.suite import Planned

SEEDS = 3  # of inputs, used in turn: the accuracy of one draw says little
FEWEST_SEEDS = 2  # for a verdict of `less accurate`
LESS_ACCURATE = 1.25  # times the base's error, on every seed
LEAST_VISIBLE_ERROR = 0.1  # of the budget: a smaller one is a rounding of the answer


@dataclass
class PairedResults:
    """One case on one backend so far: the results of each side by group, and the groups of each stage."""

    plan: Planned
    base: dict[int, Result] = field(default_factory=dict)
    head: dict[int, Result] = field(default_factory=dict)
    stages: list[list[int]] = field(default_factory=list)

    @property
    def both_ok(self) -> bool:
        return all(result.status == "ok" for result in (*self.base.values(), *self.head.values()))

    @property
    def passes(self) -> list[str]:
        """The passes that both sides timed in every group."""
        timed = [set(result.samples_ms) for result in (*self.base.values(), *self.head.values())]
        return [which for which in ("fwd", "bwd") if timed and all(which in one for one in timed)]

    def log_ratios(self, which: str) -> list[list[np.ndarray]]:
        """log(head / base) of the least call of each round, by stage and group."""
        return [
            [np.log(_least(self.head[g], which, n) / _least(self.base[g], which, n)) for g in stage]
            for stage in self.stages
            if (n := min(len(r.samples_ms[which]) for g in stage for r in (self.base[g], self.head[g])))
        ]

    def middle_ms(self, which: str) -> tuple[float, float]:
        """The median over rounds of the least call, of base and of head."""
        medians = []
        for side in (self.base, self.head):
            least = [min(block) for result in side.values() for block in result.samples_ms[which]]
            medians.append(float(np.median(least)))
        return medians[0], medians[1]

    def outcome(self, which: str, rule: Rule) -> Outcome:
        return decide(self.log_ratios(which), rule)


def _least(result: Result, which: str, rounds: int) -> np.ndarray:
    return np.asarray([min(block) for block in result.samples_ms[which][:rounds]])


def gate_in_stages(
    runner: ArmRunner,
    planned: Sequence[Planned],
    backends: Sequence[BackendVersions],
    rule: Rule,
    *,
    minutes: float | None = None,
    on_group: Callable[[str], None] = lambda text: None,
    on_result: Callable[[ArmResult], None] = lambda result: None,
) -> Gate:
    """Gate every backend on every case. After `minutes` no further group starts, and a note says so."""
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    findings: list[Finding] = []
    paired: dict[tuple[str, str], PairedResults] = {}
    for versions in backends:
        if versions.base is None or versions.head is None:
            kind, text = ("new", "is new") if versions.base is None else ("missing", "is gone; base has it")
            findings.append(Finding(kind, "every case", versions.name, text))  # type: ignore[arg-type]
            continue
        paired |= {(versions.name, plan.case.id): PairedResults(plan) for plan in planned}
    notes: list[str] = []
    for stage in range(rule.stages):
        unsettled = {key: one for key, one in paired.items() if not stage or _undecided(one, rule)}
        if not unsettled or notes:
            break
        for index in range(rule.groups):
            group = stage * rule.groups + index
            for versions in backends:
                plans = [
                    one.plan for (name, _), one in unsettled.items() if name == versions.name and one.both_ok
                ]
                if not plans or notes:
                    continue
                if ends is not None and time.monotonic() > ends:
                    notes.append(f"the {minutes:g} minutes were over in stage {stage + 1}, group {index + 1}")
                    continue
                on_group(
                    f"stage {stage + 1} of at most {rule.stages}, processes {index + 1} of {rule.groups}: "
                    f"{versions.name}, {len(plans)} cases"
                )
                assert versions.base is not None
                assert versions.head is not None
                arms = (versions.base, versions.head)
                for of_arm in runner.run(plans, arms, group, seed=group % SEEDS):
                    on_result(of_arm)
                    _add(paired[versions.name, of_arm.result.case_id], of_arm, stage)
    for (name, _), one in paired.items():
        findings += _findings(name, one, rule)
    return gathered(findings, rule.effect, notes=tuple(notes))


def _add(paired: PairedResults, of_arm: ArmResult, stage: int) -> None:
    (paired.base if of_arm.arm == BASE_ARM else paired.head)[of_arm.group] = of_arm.result
    while len(paired.stages) <= stage:
        paired.stages.append([])
    if of_arm.group not in paired.stages[stage]:
        paired.stages[stage].append(of_arm.group)


def _undecided(paired: PairedResults, rule: Rule) -> bool:
    if not paired.both_ok or not paired.base:
        return False
    return any(paired.outcome(which, rule).undecided for which in paired.passes)


def _findings(name: str, paired: PairedResults, rule: Rule) -> Iterator[Finding]:
    """All findings on one case and backend."""
    if not paired.base or not paired.head:
        yield Finding("inconclusive", paired.plan.case.id, name, "was not run: no time was left")
        return
    worst = max(
        paired.head,
        key=lambda group: (
            _severity(paired.head[group].status),
            _severity(paired.base[group].status),
            contract_width(paired.head[group]),
        ),
    )
    decided = status_finding(paired.base[worst], paired.head[worst])
    yield from decided
    if decided:
        return
    of_contract = contract_finding(paired.base[worst], paired.head[worst])
    yield from of_contract or _less_accurate(name, paired)
    yield from _memory(name, paired)
    case = paired.plan.case.id
    for which in paired.passes:
        outcome = paired.outcome(which, rule)
        ratio = outcome.ratio(*paired.middle_ms(which))
        message = (
            f"{which} {ratio.point:.3f}x ({ratio.low:.3f} to {ratio.high:.3f}), {outcome.rounds} rounds: "
            f"{ratio.head_ms:.4g} ms, base {ratio.base_ms:.4g} ms{f'; {outcome.why}' if outcome.why else ''}"
        )
        yield Finding(outcome.kind, case, name, message, which, ratio, outcome.rounds)
    if not paired.passes:
        yield Finding("same", case, name, "is right in both, and timed in neither")


def _severity(status: str) -> int:
    order = ("ok", *DECLINED, *BROKEN, "wrong")
    return order.index(status)


def _less_accurate(name: str, paired: PairedResults) -> Iterator[Finding]:
    """An error above LESS_ACCURATE times the base's on every seed, and large enough to be seen in the answer."""
    by_seed = {}
    for group, head in paired.head.items():
        base = paired.base[group]
        if head.error_over_budget is None or base.error_over_budget is None:
            return
        by_seed[head.seed] = (base.error_over_budget, head.error_over_budget)
    if len(by_seed) < FEWEST_SEEDS:
        return
    if all(
        after > LESS_ACCURATE * before and after > LEAST_VISIBLE_ERROR for before, after in by_seed.values()
    ):
        before, after = (float(np.median(values)) for values in zip(*by_seed.values(), strict=True))
        message = (
            f"error {after:.2f} of the budget, base {before:.2f}, and larger on each of {len(by_seed)} seeds; "
            "right still, but nearer to wrong"
        )
        yield Finding("less accurate", paired.plan.case.id, name, message)


def _memory(name: str, paired: PairedResults) -> Iterator[Finding]:
    """Memory that is above the margin in every group of processes, and in two at least."""
    for which in ("fwd_peak", "saved", "bwd_peak"):
        pairs = [
            (paired.base[g].memory_bytes.get(which), paired.head[g].memory_bytes.get(which))
            for g in paired.head
        ]
        over = [bigger(before, after) for before, after in pairs if before is not None and after is not None]
        if len(over) >= 2 and all(over):
            yield Finding("bigger", paired.plan.case.id, name, f"{which} {over[0]}", which)
