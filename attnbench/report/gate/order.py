"""Which finding comes first, and what is said of all of them? The worst kind, then the largest effect; a line."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

from attnbench.gate import FAILING, KINDS, Finding, Gate

Level = Literal["failure", "warning", "remark", "nothing"]
LEVELS: tuple[Level, ...] = ("failure", "warning", "remark", "nothing")
QUIET = ("new", "faster", "accepted")


def level_of(finding: Finding) -> Level:
    """What a finding asks of the reader: "failure" fails the gate, "nothing" is as it was."""
    if finding.kind in FAILING:
        return "failure"
    if finding.kind == "same":
        return "nothing"
    return "remark" if finding.kind in QUIET else "warning"


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """By level, kind, size of effect; equal ones by backend and case, so that two runs give one order."""
    return sorted(findings, key=_place)


def _place(finding: Finding) -> tuple[int, int, float, str, str, str]:
    return (
        LEVELS.index(level_of(finding)),
        KINDS.index(finding.kind),
        -effect(finding),
        finding.backend,
        finding.case,
        finding.which,
    )


def effect(finding: Finding) -> float:
    """|log ratio|, infinite where the ratio is no positive number; 0 where there is none."""
    if finding.ratio is None:
        return 0.0
    point = finding.ratio.point
    return abs(math.log(point)) if math.isfinite(point) and point > 0 else math.inf


def counted(findings: Sequence[Finding]) -> str:
    """`1 wrong, 2 slower, 40 same`; "nothing" where there is no finding."""
    count = Counter(finding.kind for finding in worst_first(findings))
    return ", ".join(f"{number} {kind}" for kind, number in count.items()) or "nothing"


def word_of(found: Gate, *, strict: bool = False) -> str:
    """The verdict in a word or a few, without its figures."""
    levels = {level_of(finding) for finding in found.findings}
    if "failure" in levels:
        return "Worse"
    if "warning" in levels:
        unsure = found.exit_code(strict=strict) != 0
        return "Not shown to be the same" if unsure else "Not worse, as far as it can be told"
    return "Not worse"


def headline(found: Gate, *, strict: bool = False) -> str:
    """The verdict in one line of our own words: what fails, or else what is to be looked at."""
    word = word_of(found, strict=strict)
    level: Level = "failure" if word == "Worse" else "warning"
    told = [finding for finding in found.findings if level_of(finding) == level]
    return f"{word}: {counted(told)}" if told else word
