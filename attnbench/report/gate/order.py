"""The order of findings, the worst first, and the verdict on all of them in one line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from attnbench.gate import FAILING, KINDS, Finding, Gate

Level = Literal["failure", "warning", "remark", "nothing"]
REMARKED = ("new", "faster", "accepted")


def level_of(finding: Finding) -> Level:
    """How severe a finding is: "failure" fails the gate, "nothing" did not change."""
    if finding.kind in FAILING:
        return "failure"
    if finding.kind == "same":
        return "nothing"
    return "remark" if finding.kind in REMARKED else "warning"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """By level, kind and size of effect; equal ones by backend and case, so that two runs give one order."""
    return sorted(findings, key=_place)


def _place(finding: Finding) -> tuple[int, int, float, str, str, str]:
    return (
        get_args(Level).index(level_of(finding)),
        KINDS.index(finding.kind),
        -effect(finding),
        finding.backend,
        finding.case,
        finding.which,
    )


def effect(finding: Finding) -> float:
    """|log ratio|; infinite if the ratio is no positive number, 0 without a ratio."""
    if finding.ratio is None:
        return 0.0
    point = finding.ratio.point
    return abs(math.log(point)) if math.isfinite(point) and point > 0 else math.inf


def counted(findings: Sequence[Finding]) -> str:
    """`1 wrong, 2 slower, 40 same`; "nothing" without a finding."""
    count = Counter(finding.kind for finding in worst_first(findings))
    return ", ".join(f"{number} {kind}" for kind, number in count.items()) or "nothing"


def word_of(judged: Gate, *, strict: bool = False) -> str:
    """The verdict in a few words, without figures."""
    levels = {level_of(finding) for finding in judged.findings}
    if "failure" in levels:
        return "Worse"
    if "warning" in levels:
        unsure = judged.exit_code(strict=strict) != 0
        return "Not shown to be the same" if unsure else "Not worse, as far as it can be told"
    return "Not worse"


def headline(judged: Gate, *, strict: bool = False) -> str:
    """The verdict in one line: what fails, or else what needs a look."""
    word = word_of(judged, strict=strict)
    level: Level = "failure" if word == "Worse" else "warning"
    severe = [finding for finding in judged.findings if level_of(finding) == level]
    return f"{word}: {counted(severe)}" if severe else word
