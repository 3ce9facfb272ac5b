"""Suspected limits of a plain function: exceptions that cover a whole value of a factor, such as every 6:2 grouping.

A function declares nothing, and many kernels `assert` or raise ValueError where they should refuse with
NotImplementedError. A clean exception for one value of a factor, whatever the others are, is taken for such a refusal,
and is reported in the function's own words. An exception that some rows of each value escape is a crash.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from attnbench.conformance.battery_factors import Row

FACTORS = ("heads", "head_dims", "lengths", "batch", "mask", "scores", "layout", "scale")
CONFIRMATIONS = 4  # accepted rows in which a value is tried before it counts as covered
FEWEST_TRIED = 2  # of these, not counting rows that are refused


@dataclass(frozen=True, kw_only=True)
class SuspectedLimit:
    """Values of one factor for which a function raises, and its words."""

    factor: str
    values: tuple[str, ...]
    words: str

    def __str__(self) -> str:
        if self.factor == "direction":
            return f"no backward: {self.words}; the forward is checked in full"
        shown = ", ".join(self.values[:4]) + (
            f" and {len(self.values) - 4} more" if len(self.values) > 4 else ""
        )
        return f"{self.factor.replace('_', ' ')} {shown}: {self.words}"


def value_text(factor: str, value: Any) -> str:
    """One value of a factor as a report shows it: 6:2, 129x65, 192/128."""
    if factor == "lengths":
        return f"{value[0]}x{value[1]}"
    if factor == "heads":
        return f"{value[0]}:{value[1]}"
    if factor == "head_dims":
        return str(value[0]) if value[0] == value[1] else f"{value[0]}/{value[1]}"
    if factor == "scores":
        return " ".join(str(score) for score in value) or "none"
    if factor == "scale":
        return "default" if value is None else str(value)
    return str(value)


def covering_factor(
    raised: Row,
    accepted: Iterable[Row],
    computes: Callable[[Row], bool | None],
    factors: Iterable[str] = FACTORS,
) -> str | None:
    """The factor whose value in the raised row raises in each accepted row, too; None if there is no such factor.

    `computes(row)` asks the function; None if the row is no case, or is refused.
    """
    plain = list(accepted)[:CONFIRMATIONS]
    for factor in factors:
        value = getattr(raised, factor)
        if any(getattr(row, factor) == value for row in accepted):
            continue
        answers = [computes(replace(row, **{factor: value})) for row in plain]
        tried = [answer for answer in answers if answer is not None]
        if len(tried) >= min(FEWEST_TRIED, len(plain)) and not any(tried):
            return factor
    return None


def without_numbers(words: str) -> str:
    """The words of an exception with each number replaced: one limit, whatever the sizes."""
    return re.sub(r"\d+", "#", words)


def grouped(limits: Iterable[tuple[str, Any, str]]) -> list[SuspectedLimit]:
    """One limit per factor and wording (numbers aside) from triples of factor, value and words."""
    groups: dict[tuple[str, str], list[tuple[Any, str]]] = {}
    for factor, value, words in limits:
        groups.setdefault((factor, without_numbers(words)), []).append((value, words))
    return [
        SuspectedLimit(
            factor=factor,
            values=tuple(dict.fromkeys(value_text(factor, value) for value, _ in members)),
            words=members[0][1],
        )
        for (factor, _), members in groups.items()
    ]
