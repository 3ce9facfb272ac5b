"""Failures with one cause, told once: the cause, one failure in numbers, how many share it, the smallest, one command.

A failure has several guesses. The fewest causes that cover all failures are told: first the one among the first two
guesses of most failures, then that of most of the others. An exception is its own cause. Wrong answers that nobody
explained, for want of time or since they follow, are counted with explained ones, if possible of the same pass.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from attnbench.conformance.outcome import ORACLE, Failure
from attnbench.problem import Case

GUESSES = 2  # of each failure
_NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?|-?\b(inf|nan)\b")
LONGEST_COMMAND = 400  # characters; a longer one holds a table, and is shown only if there is no other


@dataclass(frozen=True)
class CauseBlock:
    """Failures that are told together, under one cause or two; none if no guess is known."""

    causes: tuple[str, ...]
    failures: tuple[Failure, ...]
    explained: int

    @property
    def shown(self) -> Failure:
        """The failure on the smallest case, an explained one of the oracle if there is any."""
        return min(
            self.failures,
            key=lambda f: (
                not f.command,
                not f.causes,
                f.check != ORACLE,
                len(f.command) > LONGEST_COMMAND,
                _size(f.smallest or f.case),
            ),
        )

    @property
    def words(self) -> str:
        """The causes in one sentence; the failure's own words if there are none."""
        if not self.shown.tensors or not self.causes:
            return f"{self.shown.check}: {self.shown.reason}"
        return ", or ".join(self.causes)

    def lines(self) -> list[str]:
        """The block as a report shows it."""
        shown = self.shown
        small = shown.smallest or shown.case
        lines = [self.words]
        if shown.reason not in self.words:
            lines.append(f"  {shown.check}: {shown.reason}")
        elif self.causes and not any(words in self.words for words in self.causes):
            lines.append(f"  {', or '.join(self.causes)}")
        lines.append(f"  in     {self.counted()}")
        is_named = f"distribution {shown.distribution}" in shown.command.replace("='", " ")
        on = f" on {shown.distribution}" if is_named else ""  # a smaller case may show it on plain inputs
        lines.append(f"  small  {small.id}{on}")
        if shown.command:
            lines.append(f"  again  {shown.command}")
        return lines

    def counted(self) -> str:
        """How many checks share the cause, by check: `12 checks (oracle 11, mask_probe 1) in bf16, fp32`."""
        by_check = Counter(f.check for f in self.failures)
        many = len(self.failures)
        each = ", ".join(
            f"{name} {count}" if len(by_check) > 1 else name for name, count in by_check.most_common(4)
        )
        each += f" and {len(by_check) - 4} more" if len(by_check) > 4 else ""
        each += f"; {self.explained} explained" if self.explained < many else ""
        dtypes = ", ".join(sorted({f.case.dtype for f in self.failures}))
        return f"{many} check{'s' if many > 1 else ''} ({each}) in {dtypes}"


def blocks(failures: Sequence[Failure]) -> list[CauseBlock]:
    """The failures by cause, each in one block, the block of most failures first."""
    unexplained = [f for f in failures if not f.causes and f.tensors]
    left = [f for f in failures if f.causes or not f.tensors]
    found: list[tuple[tuple[str, ...], list[Failure]]] = []
    while left:
        key = _commonest(left)
        same = [f for f in left if key in _keys(f)]
        left = [f for f in left if key not in _keys(f)]
        found.append((_told(key, same), same))
    found.sort(key=lambda each: -len(each[1]))
    joined: list[list[Failure]] = [[] for _ in found]
    alone: list[Failure] = []
    for failure in unexplained:
        alike = [n for n, (_, same) in enumerate(found) if _is_alike(failure, same)]
        judged = [
            n for n, (_, same) in enumerate(found) if any(f.tensors and f.check == ORACLE for f in same)
        ]
        (joined[(alike or judged)[0]] if alike or judged else alone).append(failure)
    made = [
        CauseBlock(causes, (*same, *more), len(same))
        for (causes, same), more in zip(found, joined, strict=True)
    ]
    made += [CauseBlock((), tuple(group), len(group)) for group in _by_words(alone)]
    return sorted(made, key=lambda block: -len(block.failures))


def _is_alike(failure: Failure, explained: Iterable[Failure]) -> bool:
    """Whether an explained failure of the oracle is wrong in the forward, or in the backward alone, as this one is."""
    return any(
        f.check == ORACLE and f.tensors and _is_of_forward(f) == _is_of_forward(failure) for f in explained
    )


def _is_of_forward(failure: Failure) -> bool:
    return not {"out", "lse"}.isdisjoint(failure.tensors)


def _by_words(failures: Iterable[Failure]) -> list[list[Failure]]:
    groups: dict[str, list[Failure]] = {}
    for failure in failures:
        groups.setdefault(_wording(failure.reason), []).append(failure)
    return list(groups.values())


def _wording(words: str) -> str:
    """The words with each number replaced: one fault, whatever the sizes."""
    return _NUMBER.sub("#", words)


def _keys(failure: Failure) -> tuple[str, ...]:
    """What may join the failure to others: its first guesses; of an exception and the like, its words."""
    guesses = failure.causes[:GUESSES] if failure.tensors else (failure.reason,)
    return tuple(_wording(words) for words in guesses)


def _commonest(failures: Iterable[Failure]) -> str:
    """The key of most failures; of several, the one that is most often the first."""
    any_place: Counter[str] = Counter()
    first: Counter[str] = Counter()
    for failure in failures:
        keys = _keys(failure)
        any_place.update(set(keys))
        first[keys[0]] += 1
    return max(any_place, key=lambda key: (any_place[key], first[key]))


def _told(key: str, failures: Sequence[Failure]) -> tuple[str, ...]:
    """The commonest wording of a cause, and the commonest other guess beside it."""
    guesses = [words for f in failures for words in dict.fromkeys(f.causes[:GUESSES])]
    same = Counter(words for words in guesses if _wording(words) == key)
    others = Counter(words for words in guesses if _wording(words) != key)
    return tuple(words for words, _ in (*same.most_common(1), *others.most_common(1)))


def _size(case: Case) -> tuple[int, int]:
    return case.rows * case.k_len * (case.head_dim + case.v_dim), len(case.id)
