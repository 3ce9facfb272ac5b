"""Which results answer the same question in two sets, and were they measured on the same kind of machine?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.errors import NotComparable
from attnbench.measure.fingerprint import IDENTIFYING
from attnbench.sweep.result import Result
from attnbench.sweep.store import read_environments, read_results

Key = tuple[str, str, int, str]
MOST_DIFFERENCES = 8


@dataclass(frozen=True)
class ResultSet:
    """Results and, by key, the fingerprints of where they were measured; `name` is how a person calls the set."""

    results: Sequence[Result]
    environments: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def of(self, backends: Iterable[str] | None) -> ResultSet:
        """Only these backends; None: all of them."""
        if backends is None:
            return self
        wanted = set(backends)
        return ResultSet([r for r in self.results if r.backend in wanted], self.environments, self.name)


def read_set(path: Path) -> ResultSet:
    """A result folder with its fingerprints, called by its path."""
    return ResultSet(read_results(path), read_environments(path), str(path))


@dataclass(frozen=True)
class Pairs:
    """The results of both sets by question, in the order of the first; and what only one of them has."""

    both: tuple[tuple[Result, Result], ...]
    only_base: tuple[Result, ...]
    only_head: tuple[Result, ...]


def pair(base: ResultSet, head: ResultSet) -> Pairs:
    """Match by case, backend, seed and distribution; NotComparable where nothing matches."""
    ours, theirs = _by_key(base.results), _by_key(head.results)
    both = tuple((result, theirs[key]) for key, result in ours.items() if key in theirs)
    if not both:
        raise NotComparable(
            f"{base.name or 'base'} ({len(ours)} results) and {head.name or 'head'} ({len(theirs)} results) "
            "have no case in common; run the same suite with the same --seed on both"
        )
    only_base = tuple(result for key, result in ours.items() if key not in theirs)
    only_head = tuple(result for key, result in theirs.items() if key not in ours)
    return Pairs(both, only_base, only_head)


def _by_key(results: Iterable[Result]) -> dict[Key, Result]:
    return {result.key: result for result in results}


def differences(base: ResultSet, head: ResultSet, pairs: Pairs) -> list[str]:
    """What differs between the machines of paired results, in words; empty where they are alike."""
    seen = {
        (one.environment, two.environment) for one, two in pairs.both if one.environment != two.environment
    }
    if any(not one.environment and not two.environment for one, two in pairs.both):
        seen.add(("", ""))
    found: list[str] = []
    for one, two in sorted(seen):
        ours, theirs = base.environments.get(one), head.environments.get(two)
        if ours is None or theirs is None:
            found.append(f"no fingerprint is stored for {'base' if ours is None else 'head'}")
            continue
        found += _unlike("", {n: ours.get(n) for n in IDENTIFYING}, {n: theirs.get(n) for n in IDENTIFYING})
    return list(dict.fromkeys(found))


def _unlike(where: str, one: Any, two: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        names = sorted(set(one) | set(two))
        return [text for name in names for text in _unlike(f"{where}{name} ", one.get(name), two.get(name))]
    return [] if one == two else [f"{where.strip()}: {one} and {two}"]


def require_alike(base: ResultSet, head: ResultSet, pairs: Pairs) -> None:
    """Raise NotComparable, naming what differs, where the two sets come from unlike machines or libraries."""
    found = differences(base, head, pairs)
    if found:
        more = f"; and {len(found) - MOST_DIFFERENCES} more" if len(found) > MOST_DIFFERENCES else ""
        raise NotComparable(
            f"{base.name or 'base'} and {head.name or 'head'} were not measured alike: "
            f"{'; '.join(found[:MOST_DIFFERENCES])}"
            f"{more}; measure both on one machine, or add --allow-unlike"
        )
