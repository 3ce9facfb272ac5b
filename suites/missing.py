"""Which benchmarks of the baseline did this run lose? What vanished, was skipped or has no time now is no improvement.

pytest-benchmark compares what has times on both sides and passes the rest in silence. What a run was not asked for
(another suite, other backends, -k, a path) is not lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GONE, UNTIMED = "is gone", "has no time now"


@dataclass(frozen=True)
class Lost:
    """A benchmark that `baseline` has times of and this run has not, and why, in words."""

    name: str
    baseline: str
    why: str


@dataclass(frozen=True)
class Asked:
    """What a run was asked for: paths and node ids from the root, suites, backends (empty: all), a -k expression."""

    words: tuple[str, ...]
    suites: frozenset[str]
    backends: frozenset[str] = frozenset()
    keyword: str = ""

    def has(self, name: str, info: Mapping[str, Any]) -> bool:
        """Whether the benchmark `name`, of this extra_info, is one that the run should have timed."""
        words = [word for word in self.words if _holds(word, name)]
        file = name.split("::")[0]
        # A suite's own file, named, is run whether --suite names it or not.
        named = any(word.split("::")[0] == file for word in words) and not file.endswith("test_given.py")
        suite, backend = info.get("suite"), info.get("backend")
        return (
            bool(words)
            and (named or suite is None or same_suite(suite) in {same_suite(s) for s in self.suites})
            and (not self.backends or backend is None or backend in self.backends)
            and (not self.keyword or selects(self.keyword, name))
        )


def lost(
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]],
    timed: Set[str],
    outcomes: Mapping[str, tuple[str, str]],
    asked: Callable[[str, Mapping[str, Any]], bool],
    deselected: Set[str] = frozenset(),
) -> Iterator[Lost]:
    """What the baselines (file to benchmarks by name) time and this run does not, in their order.

    `outcomes` has (outcome, reason) of each test that ran.
    """
    for baseline, benchmarks in baselines.items():
        for name, benchmark in benchmarks.items():
            if name in timed or name in deselected or not asked(name, benchmark.get("extra_info") or {}):
                continue
            outcome, reason = outcomes.get(name, ("", ""))
            why = GONE if not outcome else UNTIMED if outcome == "passed" else f"{outcome} now"
            yield Lost(name, baseline, f"{why}: {reason}" if reason else why)


def told(found: Sequence[Lost]) -> Iterator[str]:
    """A line a lost benchmark."""
    for one in found:
        yield f"{one.name} {one.why} ({one.baseline} has times of it)"


def same_suite(suite: str) -> str:
    """One text for all spellings of a suite: its name, or where its file is."""
    return str(Path(suite).resolve()) if suite.endswith(".toml") else suite


def selects(keyword: str, name: str) -> bool:
    """Whether `-k keyword` takes a test of this node id, as pytest reads it: parts of the names on its way."""
    from _pytest.mark.expression import Expression

    parts = [part.lower() for part in name.replace("::", "/").split("/")]

    def matches(word: str, /, **_: Any) -> bool:
        return any(word.lower() in part for part in parts)

    return Expression.compile(keyword).evaluate(matches)


def _holds(word: str, name: str) -> bool:
    """Whether a path or node id of the command line covers a benchmark's node id."""
    return word in ("", ".", name) or any(name.startswith(f"{word}{end}") for end in ("/", "::", "["))
