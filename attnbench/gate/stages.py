"""Did a revision get worse? Base and head of each backend judged and timed side by side, in stages.

The first stage takes every case; a further one only those whose speed is undecided. Correctness, coverage, accuracy
and memory are settled by the first stage's processes, speed by the rule of `sequential`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from attnbench.gate.arms import Ran, Track
from attnbench.gate.sequential import Outcome, Rule, decide
from attnbench.gate.touched import BASE, Contest
from attnbench.gate.verdict import Finding, Gate, bigger, gathered, status_finding
from attnbench.sweep.result import BROKEN, Result
from attnbench.sweep.suite import Planned

SEEDS = 3  # of inputs, used in turn: the accuracy of one draw says little
FEWEST_SEEDS = 2  # before anybody is called less accurate
LESS_ACCURATE = 1.25  # times the base's error, on every seed
VISIBLE = 0.1  # of the budget: an error below it is a rounding of the answer


@dataclass
class Question:
    """What is known of one case on one backend: a result of each side by group, and the stages of groups so far."""

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
        """By stage and group: log(head / base) of the least call of each round."""
        return [
            [np.log(_least(self.head[g], which, n) / _least(self.base[g], which, n)) for g in stage]
            for stage in self.stages
            if (n := min(len(r.samples_ms[which]) for g in stage for r in (self.base[g], self.head[g])))
        ]

    def middle_ms(self, which: str) -> tuple[float, float]:
        """The median over rounds of the least call, of base and of head."""
        found = []
        for side in (self.base, self.head):
            least = [min(block) for result in side.values() for block in result.samples_ms[which]]
            found.append(float(np.median(least)))
        return found[0], found[1]

    def outcome(self, which: str, rule: Rule) -> Outcome:
        return decide(self.log_ratios(which), rule)


def _least(result: Result, which: str, rounds: int) -> np.ndarray:
    return np.asarray([min(block) for block in result.samples_ms[which][:rounds]])


def hold_against(
    track: Track,
    planned: Sequence[Planned],
    contested: Sequence[Contest],
    rule: Rule,
    *,
    minutes: float | None = None,
    on_group: Callable[[str], None] = lambda text: None,
    on_ran: Callable[[Ran], None] = lambda ran: None,
) -> Gate:
    """Gate every contest on every case. With `minutes` no group is begun once they are over, and that is said."""
    ends = None if minutes is None else time.monotonic() + 60 * minutes
    found: list[Finding] = []
    questions: dict[tuple[str, str], Question] = {}
    for contest in contested:
        if contest.base is None or contest.head is None:
            kind, said = ("new", "is new") if contest.base is None else ("missing", "is gone; base has it")
            found.append(Finding(kind, "every case", contest.name, said))  # type: ignore[arg-type]
            continue
        questions |= {(contest.name, plan.case.id): Question(plan) for plan in planned}
    notes: list[str] = []
    for stage in range(rule.stages):
        open_ones = {key: q for key, q in questions.items() if not stage or _undecided(q, rule)}
        if not open_ones or notes:
            break
        for index in range(rule.groups):
            group = stage * rule.groups + index
            for contest in contested:
                asked = [q.plan for (name, _), q in open_ones.items() if name == contest.name and q.both_ok]
                if not asked or notes:
                    continue
                if ends is not None and time.monotonic() > ends:
                    notes.append(f"the {minutes:g} minutes were over in stage {stage + 1}, group {index + 1}")
                    continue
                on_group(
                    f"stage {stage + 1} of at most {rule.stages}, processes {index + 1} of {rule.groups}: "
                    f"{contest.name}, {len(asked)} cases"
                )
                assert contest.base is not None
                assert contest.head is not None
                for ran in track.run(asked, (contest.base, contest.head), group, seed=group % SEEDS):
                    on_ran(ran)
                    _take(questions[contest.name, ran.result.case_id], ran, stage)
    for (name, _), question in questions.items():
        found += _findings(name, question, rule)
    return gathered(found, rule.effect, notes=tuple(notes))


def _take(question: Question, ran: Ran, stage: int) -> None:
    (question.base if ran.arm == BASE else question.head)[ran.group] = ran.result
    while len(question.stages) <= stage:
        question.stages.append([])
    if ran.group not in question.stages[stage]:
        question.stages[stage].append(ran.group)


def _undecided(question: Question, rule: Rule) -> bool:
    if not question.both_ok or not question.base:
        return False
    return any(question.outcome(which, rule).undecided for which in question.passes)


def _findings(name: str, question: Question, rule: Rule) -> Iterator[Finding]:
    """Everything that is to be said of one case on one backend."""
    if not question.base or not question.head:
        yield Finding("inconclusive", question.plan.case.id, name, "was not run: no time was left")
        return
    worst = max(
        question.head,
        key=lambda group: (_severity(question.head[group].status), _severity(question.base[group].status)),
    )
    decided = status_finding(question.base[worst], question.head[worst])
    yield from decided
    if decided:
        return
    yield from _less_accurate(name, question)
    yield from _memory(name, question)
    case = question.plan.case.id
    for which in question.passes:
        outcome = question.outcome(which, rule)
        ratio = outcome.ratio(*question.middle_ms(which))
        message = (
            f"{which} {ratio.point:.3f}x ({ratio.low:.3f} to {ratio.high:.3f}), {outcome.rounds} rounds: "
            f"{ratio.head_ms:.4g} ms, base {ratio.base_ms:.4g} ms{f'; {outcome.why}' if outcome.why else ''}"
        )
        yield Finding(outcome.kind, case, name, message, which, ratio, outcome.rounds)
    if not question.passes:
        yield Finding("same", case, name, "is right in both, and timed in neither")


def _severity(status: str) -> int:
    order = ("ok", "refused", "unavailable", *BROKEN, "wrong")
    return order.index(status)


def _less_accurate(name: str, question: Question) -> Iterator[Finding]:
    """An error above LESS_ACCURATE times the base's on every seed, and large enough to be seen in the answer."""
    by_seed = {}
    for group, head in question.head.items():
        base = question.base[group]
        if head.error_over_budget is None or base.error_over_budget is None:
            return
        by_seed[head.seed] = (base.error_over_budget, head.error_over_budget)
    if len(by_seed) < FEWEST_SEEDS:
        return
    if all(after > LESS_ACCURATE * before and after > VISIBLE for before, after in by_seed.values()):
        before, after = (float(np.median(values)) for values in zip(*by_seed.values(), strict=True))
        message = (
            f"error {after:.2f} of the budget, base {before:.2f}, and larger on each of {len(by_seed)} seeds; "
            "right still, but nearer to wrong"
        )
        yield Finding("less accurate", question.plan.case.id, name, message)


def _memory(name: str, question: Question) -> Iterator[Finding]:
    """Memory that is above the margin in every group of processes, and in two at least."""
    for which in ("fwd_peak", "saved", "bwd_peak"):
        pairs = [
            (question.base[g].memory_bytes.get(which), question.head[g].memory_bytes.get(which))
            for g in question.head
        ]
        over = [bigger(before, after) for before, after in pairs if before is not None and after is not None]
        if len(over) >= 2 and all(over):
            yield Finding("bigger", question.plan.case.id, name, f"{which} {over[0]}", which)
