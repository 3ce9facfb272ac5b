"""The benchmarks that a baseline has times of and this run has not: vanished, skipped, failed or untimed.

pytest-benchmark compares what has times on both sides and ignores the rest. What a run deselects (another suite, other
backends, -k, a path) is not missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GONE, UNTIMED = "is gone", "has no time now"


@dataclass(frozen=True)
class MissingBenchmark:
    """A benchmark that `baseline` has times of and this run has not, with the reason in words."""

    name: str
    baseline: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} {self.reason} ({self.baseline} has times of it)"


@dataclass(frozen=True)
class Selection:
    """What a run selects: paths and node ids from the root, suites, backends (empty: all), a -k expression."""

    words: tuple[str, ...]
    suites: frozenset[str]
    backends: frozenset[str] = frozenset()
    keyword: str = ""

    def includes(self, name: str, info: Mapping[str, Any]) -> bool:
        """Whether the benchmark `name`, with this extra_info, belongs to the run."""
        words = [word for word in self.words if _covers(word, name)]
        file = name.split("::")[0]
        # A suite's own file on the command line runs even if --suite does not name the suite.
        named = any(word.split("::")[0] == file for word in words) and not file.endswith("test_given.py")
        suite, backend = info.get("suite"), info.get("backend")
        return (
            bool(words)
            and (named or suite is None or same_suite(suite) in {same_suite(s) for s in self.suites})
            and (not self.backends or backend is None or backend in self.backends)
            and (not self.keyword or selects(self.keyword, name))
        )


def missing_benchmarks(
    baselines: Mapping[str, Mapping[str, Mapping[str, Any]]],
    timed: Set[str],
    outcomes: Mapping[str, tuple[str, str]],
    includes: Callable[[str, Mapping[str, Any]], bool],
    deselected: Set[str] = frozenset(),
) -> Iterator[MissingBenchmark]:
    """What the baselines (file -> benchmarks by name) time and this run does not, in their order.

    `outcomes` has (outcome, reason) of each test that ran.
    """
    for baseline, benchmarks in baselines.items():
        for name, benchmark in benchmarks.items():
            if name in timed or name in deselected or not includes(name, benchmark.get("extra_info") or {}):
                continue
            outcome, reason = outcomes.get(name, ("", ""))
            what = GONE if not outcome else UNTIMED if outcome == "passed" else f"{outcome} now"
            yield MissingBenchmark(name, baseline, f"{what}: {reason}" if reason else what)


def same_suite(suite: str) -> str:
    """One text for all spellings of a suite: its name, or the resolved path of its file."""
    return str(Path(suite).resolve()) if suite.endswith(".toml") else suite


def selects(keyword: str, name: str) -> bool:
    """Whether `-k keyword` selects a test of this node id, by pytest's rule: substrings of the names on its path."""
    from _pytest.mark.expression import Expression

    parts = [part.lower() for part in name.replace("::", "/").split("/")]

    def matches(word: str, /, **_: Any) -> bool:
        return any(word.lower() in part for part in parts)

    return Expression.compile(keyword).evaluate(matches)


def _covers(word: str, name: str) -> bool:
    """Whether a path or node id of the command line covers a benchmark's node id."""
    return word in ("", ".", name) or any(name.startswith(f"{word}{end}") for end in ("/", "::", "["))
