"""What a verdict stands on: accepted cases, the values of each factor that were tried, and whether that is too little.

The rule, for a check that nothing but the backend restricts, in every dtype in which it computed anything:

- at least FEWEST_CASES[level] cases were computed and judged against the oracle,
- at least FEWEST_FACTORS factors took two values or more,
- a property or the protocol passed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from attnbench.backend.interface import CLAIMS
from attnbench.conformance.limits import value_text
from attnbench.conformance.outcome import LIMIT, OK, ORACLE, REFUSED, CheckOutcome
from attnbench.problem import Case

FEWEST_CASES = {"standard": 20, "exhaustive": 40}
FEWEST_FACTORS = 3
FACTORS = ("lengths", "heads", "head dims", "batch", "mask", "scores", "layout", "scale", "distribution")
SHOWN = 6  # values per line


def factor_values(case: Case, distribution: str) -> dict[str, str]:
    """The value of each factor in a case, as a report shows it."""
    values = (
        value_text("lengths", (case.q_len, case.k_len)),
        value_text("heads", (case.q_heads, case.kv_heads)),
        value_text("head_dims", (case.head_dim, case.v_dim)),
        str(case.batch),
        " ".join(sorted(case.mask.kinds)),
        value_text("scores", case.scores),
        case.layout,
        value_text("scale", case.scale),
        distribution,
    )
    return dict(zip(FACTORS, values, strict=True))


@dataclass(frozen=True, kw_only=True)
class FactorCoverage:
    """The values of one factor that were computed, and those that were only refused, with the commonest words."""

    factor: str
    taken: tuple[str, ...]
    refused: tuple[str, ...]
    words: str

    def __str__(self) -> str:
        text = f"{self.factor:<12} {_some(self.taken) or 'none'}"
        return text + (f"; refused {_some(self.refused)}: {self.words}" if self.refused else "")

    @property
    def refusal(self) -> str:
        """The line without what was computed."""
        return f"{self.factor:<12} refused {_some(self.refused)}: {self.words}"


def _some(values: tuple[str, ...]) -> str:
    more = len(values) - SHOWN
    return ", ".join(values[:SHOWN]) + (f" and {more} more" if more > 0 else "")


def coverage(outcomes: Iterable[CheckOutcome]) -> list[FactorCoverage]:
    """One entry per factor, from the oracle's outcomes."""
    taken: dict[str, dict[str, None]] = {factor: {} for factor in FACTORS}
    words: dict[str, dict[str, Counter[str]]] = {factor: {} for factor in FACTORS}
    turned_down = []
    for outcome in outcomes:
        if outcome.check != ORACLE or outcome.case is None:
            continue
        values = factor_values(outcome.case, outcome.distribution)
        if outcome.status in (REFUSED, LIMIT):
            turned_down.append((values, outcome.reason))
            continue
        for factor, value in values.items():
            taken[factor][value] = None
    for values, reason in turned_down:
        untaken = [factor for factor, value in values.items() if value not in taken[factor]]
        if len(untaken) == 1:  # it is this value that is refused
            words[untaken[0]].setdefault(values[untaken[0]], Counter())[reason] += 1
    entries = []
    for factor in FACTORS:
        refused = words[factor]
        commonest = sum(refused.values(), Counter()).most_common(1)
        entries.append(
            FactorCoverage(
                factor=factor,
                taken=tuple(taken[factor]),
                refused=tuple(refused),
                words=commonest[0][0] if commonest else "",
            )
        )
    return entries


def shortfall(outcomes: Iterable[CheckOutcome], level: str) -> list[str]:
    """What is missing for an unrestricted check to say `right`, in sentences; none if it stands on enough."""
    outcomes = list(outcomes)
    if level not in FEWEST_CASES:
        return []
    missing = []
    judged: dict[str, set[tuple[str, str]]] = {}
    for o in outcomes:
        if o.check == ORACLE and o.case is not None and o.status not in (REFUSED, LIMIT):
            judged.setdefault(o.dtype, set()).add((o.case.id, o.distribution))
    fewest = FEWEST_CASES[level]
    for dtype, cases in judged.items():
        if len(cases) < fewest:
            missing.append(f"{len(cases)} cases in {dtype}, fewer than {fewest}")
    varied = [entry.factor for entry in coverage(outcomes) if len(entry.taken) > 1]
    if judged and len(varied) < FEWEST_FACTORS:
        missing.append(
            f"only {', '.join(varied) or 'nothing'} took two values, fewer than {FEWEST_FACTORS} factors"
        )
    if judged and not any(o.status == OK and o.check not in (ORACLE, *CLAIMS) for o in outcomes):
        missing.append("no property and no protocol check ran")
    return missing
