"""Puts attnbench's samples into pytest-benchmark's table, JSON and comparison; the only file that knows its internals.

The plug-in has no public way to take measured times, so this uses what its own `benchmark(...)` uses: `_make_stats`,
`update`, `_mode`. A test checks it against version 5.3.1; if a name is missing, the error says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

TRIED_WITH = "5.3.1"


class WrongPluginError(RuntimeError):
    """This version of pytest-benchmark lacks an internal name that this file uses."""


def put_in(
    benchmark: Any, seconds: Sequence[float], *, group: str, clock: str, extra_info: dict[str, Any]
) -> None:
    """Make `seconds` (one per sample, each the time of one call) the statistics of this test's benchmark.

    The table compares within `group`; `clock` is written in place of the plug-in's timer.
    """
    _claim(benchmark)
    benchmark.group = group
    benchmark.extra_info.update(extra_info)
    stats = benchmark._make_stats(1)
    stats.options = {"timer": clock}
    for value in seconds:
        stats.update(value)


def without_times(benchmark: Any) -> None:
    """Mark this test as deliberately without times."""
    _claim(benchmark)


def seconds_per_direction(benchmark: Any) -> float:
    """The plug-in's --benchmark-max-time: how long one direction of a case may be timed."""
    return float(_internal(benchmark, "_max_time"))


def is_off(benchmark: Any) -> bool:
    """Whether nothing is to be timed (--benchmark-disable, or xdist)."""
    return bool(_internal(benchmark, "disabled"))


def baselines_of(config: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """The runs to compare with: file name -> benchmarks by node id; empty without a comparison."""
    session = _internal(config, "_benchmarksession")
    return {str(path): rows for path, rows in (_internal(session, "compared_mapping") or {}).items()}


def timed_in(config: Any) -> set[str]:
    """The node ids that have times in this run."""
    rows = _internal(_internal(config, "_benchmarksession"), "benchmarks")
    return {row.fullname for row in rows if row and not row.has_error}


def _claim(benchmark: Any) -> None:
    for name in ("_make_stats", "_mode", "group", "extra_info"):
        _internal(benchmark, name)
    benchmark._mode = "attnbench"  # else the plug-in warns that the fixture was not used


def _internal(benchmark: Any, name: str) -> Any:
    if not hasattr(benchmark, name):
        raise WrongPluginError(
            f"pytest-benchmark's fixture has no {name!r}; attnbench is tested with version {TRIED_WITH}: "
            f"pip install pytest-benchmark=={TRIED_WITH}"
        )
    return getattr(benchmark, name)
