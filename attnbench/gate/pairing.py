"""Pair the results of two sets by case and backend, and name what differs between their machines."""

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
    """Results, the fingerprints of their machines by key, and the `name` that messages give the set."""

    results: Sequence[Result]
    environments: Mapping[str, Any] = field(default_factory=dict)
    name: str = ""

    def of(self, backends: Iterable[str] | None) -> ResultSet:
        """Only these backends; None: all of them."""
        if backends is None:
            return self
        names = set(backends)
        return ResultSet([r for r in self.results if r.backend in names], self.environments, self.name)


def read_set(path: Path) -> ResultSet:
    """Read a result folder with its fingerprints; its name is its path."""
    return ResultSet(read_results(path), read_environments(path), str(path))


@dataclass(frozen=True)
class Pairs:
    """The results that both sets have, in the order of base; and those that only one has."""

    both: tuple[tuple[Result, Result], ...]
    only_base: tuple[Result, ...]
    only_head: tuple[Result, ...]


def pair(base: ResultSet, head: ResultSet) -> Pairs:
    """Match by case, backend, seed and distribution; NotComparable if nothing matches."""
    in_base, in_head = _by_key(base.results), _by_key(head.results)
    both = tuple((result, in_head[key]) for key, result in in_base.items() if key in in_head)
    if not both:
        raise NotComparable(
            f"{base.name or 'base'} ({len(in_base)} results) and {head.name or 'head'} ({len(in_head)} results) "
            "have no case in common; run the same suite with the same --seed on both"
        )
    only_base = tuple(result for key, result in in_base.items() if key not in in_head)
    only_head = tuple(result for key, result in in_head.items() if key not in in_base)
    return Pairs(both, only_base, only_head)


def _by_key(results: Iterable[Result]) -> dict[Key, Result]:
    return {result.key: result for result in results}


def differences(base: ResultSet, head: ResultSet, pairs: Pairs) -> list[str]:
    """What differs between the machines of paired results, in words; empty if they are alike."""
    unlike_keys = {
        (one.environment, two.environment) for one, two in pairs.both if one.environment != two.environment
    }
    if any(not one.environment and not two.environment for one, two in pairs.both):
        unlike_keys.add(("", ""))
    unlike: list[str] = []
    for one, two in sorted(unlike_keys):
        before, after = base.environments.get(one), head.environments.get(two)
        if before is None or after is None:
            unlike.append(f"no fingerprint is stored for {'base' if before is None else 'head'}")
            continue
        unlike += _unlike("", {n: before.get(n) for n in IDENTIFYING}, {n: after.get(n) for n in IDENTIFYING})
    return list(dict.fromkeys(unlike))


def _unlike(where: str, one: Any, two: Any) -> list[str]:
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        names = sorted(set(one) | set(two))
        return [text for name in names for text in _unlike(f"{where}{name} ", one.get(name), two.get(name))]
    return [] if one == two else [f"{where.strip()}: {one} and {two}"]


def require_alike(base: ResultSet, head: ResultSet, pairs: Pairs) -> None:
    """Raise NotComparable, naming what differs, if the machines or libraries of the two sets differ."""
    unlike = differences(base, head, pairs)
    if unlike:
        more = f"; and {len(unlike) - MOST_DIFFERENCES} more" if len(unlike) > MOST_DIFFERENCES else ""
        raise NotComparable(
            f"{base.name or 'base'} and {head.name or 'head'} were not measured alike: "
            f"{'; '.join(unlike[:MOST_DIFFERENCES])}"
            f"{more}; measure both on one machine, or add --allow-unlike"
        )
