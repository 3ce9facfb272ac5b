"""Two result sets compared: the gate's verdict, every ratio with its interval, and the winners that changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from attnbench.errors import NotComparable
from attnbench.gate import FAILING, KINDS, Finding, ResultSet, gate
from attnbench.gate.statistics import geometric_mean
from attnbench.report.cells import clean, factor, milliseconds, three_digits
from attnbench.report.labels import PASS_TEXT
from attnbench.report.ranking import Winner

MOST_ROWS = 400  # of a table, and points of the chart: those with the largest changes


@dataclass(frozen=True)
class PassRatio:
    """One pass of one case on one backend in both sets; figures for the chart, texts for the table."""

    backend: str
    case: str
    which: str
    kind: str
    point: float
    low: float | None
    high: float | None
    base: str
    head: str
    ratio: str
    interval: str


@dataclass(frozen=True)
class Compared:
    """Two sets, head against base. `refusal` says why the gate would not judge them; empty if it does."""

    base: str
    head: str
    verdict: str  # empty if they have nothing in common; `refusal` says so
    kind: str  # failed, unsure, fine
    refusal: str
    margin: float = 0.0
    counts: tuple[tuple[str, int, bool], ...] = ()  # kind, how often, whether it fails the gate
    unlike: tuple[str, ...] = ()
    ratios: tuple[PassRatio, ...] = ()
    others: tuple[tuple[str, str, str, str], ...] = ()  # kind, backend, case, message
    means: tuple[tuple[str, str, int, str], ...] = ()  # backend, pass, cases, factor
    changed: tuple[tuple[str, str, str], ...] = ()  # case, winner in base, winner in head
    left_out: int = 0


def compared(
    base: ResultSet,
    head: ResultSet,
    case_texts: Mapping[str, str],
    won: tuple[Sequence[Winner], Sequence[Winner]],
) -> Compared:
    """Compare head to base; `case_texts` names each case for a reader, `won` are the winners of both."""
    try:
        judged = gate(base, head, allow_unlike=True)
    except NotComparable as error:
        return Compared(_name(base), _name(head), "", "failed", clean(error, 600))
    unlike = tuple(clean(text, 200) for text in judged.unlike)
    verdict, kind = _verdict(judged.findings)
    refusal = (
        "They were measured under different conditions, so the gate would refuse to judge them."
        if unlike
        else ""
    )
    ratios = sorted(
        (_ratio(one, case_texts) for one in judged.findings if one.ratio is not None),
        key=lambda r: -abs(math.log(r.point)),
    )
    others = [
        (one.kind, clean(one.backend, 60), case_texts.get(one.case, clean(one.case)), clean(one.message))
        for one in judged.findings
        if one.ratio is None and one.kind != "same"
    ]
    return Compared(
        _name(base),
        _name(head),
        verdict,
        kind,
        refusal,
        judged.margin,
        tuple((one, judged.count(one), one in FAILING) for one in KINDS if judged.count(one)),
        unlike,
        tuple(ratios[:MOST_ROWS]),
        tuple(others[:MOST_ROWS]),
        tuple(_means(ratios)),
        tuple(_changed(*won, case_texts)),
        max(0, len(ratios) - MOST_ROWS) + max(0, len(others) - MOST_ROWS),
    )


def _name(one: ResultSet) -> str:
    return clean(one.name, 60)


def _verdict(findings: Sequence[Finding]) -> tuple[str, str]:
    """The gate's verdict in a sentence, and its class on the page."""
    bad, suspect, unsure = (
        sum(one.kind in kinds for one in findings) for kinds in (FAILING, ("suspect",), ("inconclusive",))
    )
    if bad:
        return f"Worse: {bad} {'finding' if bad == 1 else 'findings'} would fail the gate.", "failed"
    if suspect:
        slower = f"{suspect} {'pass looks' if suspect == 1 else 'passes look'} slower"
        return f"Not sure: {slower}, and two separate runs cannot confirm it.", "unsure"
    return ("Not worse, as far as it can be told.", "unsure") if unsure else ("Not worse.", "fine")


def _ratio(one: Finding, case_texts: Mapping[str, str]) -> PassRatio:
    ratio = one.ratio
    assert ratio is not None
    has_interval = ratio.low is not None and ratio.high is not None
    return PassRatio(
        clean(one.backend, 60),
        case_texts.get(one.case, clean(one.case)),
        PASS_TEXT.get(one.which, one.which),
        one.kind,
        ratio.point,
        ratio.low,
        ratio.high,
        milliseconds(ratio.base_ms),
        milliseconds(ratio.head_ms),
        factor(ratio.point),
        f"{three_digits(ratio.low)} to {three_digits(ratio.high)}" if has_interval else "too few samples",
    )


def _means(ratios: Sequence[PassRatio]) -> list[tuple[str, str, int, str]]:
    by_key: dict[tuple[str, str], list[float]] = {}
    for one in ratios:
        by_key.setdefault((one.backend, one.which), []).append(one.point)
    return [
        (backend, which, len(points), factor(geometric_mean(points).mean))
        for (backend, which), points in sorted(by_key.items())
    ]


def _changed(
    before: Sequence[Winner], after: Sequence[Winner], case_texts: Mapping[str, str]
) -> list[tuple[str, str, str]]:
    """Cases whose winner changed: no backend is at the front of both."""
    now = {winner.case: winner for winner in after}
    changed = []
    for one in before:
        two = now.get(one.case)
        if two is not None and one.tied and two.tied and not set(one.tied) & set(two.tied):
            sides = (", ".join(clean(name, 60) for name in w.tied[:3]) for w in (one, two))
            changed.append((case_texts.get(one.case, clean(one.case)), *sides))
    return changed[:MOST_ROWS]  # type: ignore[return-value]
