"""pytest-benchmark has the internals that `into_pytest_benchmark` uses."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from attnbench_suites.into_pytest_benchmark import TRIED_WITH, WrongPluginError, put_in, without_times
from attnbench_suites.measured import seconds_of

from attnbench.sweep.result import Result

pytestmark = pytest.mark.benchmarks

ROOT = Path(__file__).resolve().parents[2]


def test_our_samples_are_the_statistics_of_the_test(benchmark: Any, request: pytest.FixtureRequest) -> None:
    if benchmark.disabled:
        pytest.skip("benchmarks are disabled")
    seconds = [0.004, 0.001, 0.002, 0.003]
    put_in(benchmark, seconds, group="together", clock="sundial", extra_info={"id": "q1"})
    # Taken out again: it is no benchmark of this test session.
    row = request.config._benchmarksession.benchmarks.pop().as_dict()  # type: ignore[attr-defined]
    assert row["stats"]["data"] == seconds
    assert (row["stats"]["min"], row["stats"]["median"], row["stats"]["rounds"]) == (0.001, 0.0025, 4)
    assert (row["group"], row["extra_info"], row["options"]) == (
        "together",
        {"id": "q1"},
        {"timer": "sundial"},
    )


def test_the_fixture_counts_as_used(benchmark: Any) -> None:
    from pytest_benchmark.fixture import FixtureAlreadyUsed

    without_times(benchmark)
    with pytest.raises(FixtureAlreadyUsed, match="attnbench"):
        benchmark(lambda: None)


def test_the_version_that_was_tried_is_the_one_that_is_pinned_and_installed() -> None:
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"pytest-benchmark=={TRIED_WITH}" in pinned
    if version("pytest-benchmark") != TRIED_WITH:
        pytest.skip(f"another version than the pinned one is installed: {version('pytest-benchmark')}")
    import pytest_benchmark

    assert pytest_benchmark.__version__ == TRIED_WITH


def test_a_plug_in_without_these_internals_is_named_with_the_version_to_install() -> None:
    stranger = SimpleNamespace(group=None, extra_info={})
    with pytest.raises(WrongPluginError, match=r"no '_make_stats'.*pip install pytest-benchmark=="):
        put_in(stranger, [1.0], group="", clock="", extra_info={})


def test_samples_of_all_rounds_are_given_in_seconds() -> None:
    samples = {"fwd": [[1.0, 2.0], [4.0]], "bwd": [[8.0]]}
    result = Result(case={}, case_id="q1", backend="naive", status="ok", samples_ms=samples)
    assert seconds_of(result, "fwd") == [0.001, 0.002, 0.004]
    assert seconds_of(result, "bwd") == [0.008]
