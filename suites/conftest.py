"""`pytest suites/` as a sweep: one test per case, backend and direction, timed only if it is right.

    pytest suites/                                    the suite quick on every backend
    pytest suites/test_core.py --backend naive,flex   another suite, fewer backends
    pytest suites/ --suite core --suite mine.toml     suites by name or by file
    pytest suites/ -k "causal and naive and bwd"      by substrings of case id, backend, direction

pytest-benchmark's options apply (--benchmark-json, -compare, -autosave, -group-by); --benchmark-max-time is how long a
direction of a case is timed, and --benchmark-disable judges without keeping times. With --benchmark-compare, a
benchmark that the baseline has times of and this run has not fails the run; pytest-benchmark alone would ignore it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attnbench_suites.into_pytest_benchmark import (
    baselines_of,
    is_off,
    put_in,
    seconds_per_direction,
    timed_in,
    without_times,
)
from attnbench_suites.measured import Measurements, extra_info, failure_message, seconds_of
from attnbench_suites.missing import MissingBenchmark, Selection, missing_benchmarks

from attnbench.backend import entries
from attnbench.device import resolve_device
from attnbench.errors import AttnbenchError, did_you_mean
from attnbench.statuses import DECLINED
from attnbench.sweep.case_run import TimingSettings
from attnbench.sweep.suite import Planned, list_suites, load_suite

HERE = Path(__file__).parent
GIVEN = "given"  # test_given.py runs the suites that are files
PLANS = pytest.StashKey[dict[tuple[str, str], tuple[str, Planned]]]()
OUTCOMES = pytest.StashKey[dict[str, tuple[str, str]]]()
DESELECTED = pytest.StashKey[set[str]]()
MISSING = pytest.StashKey[list[MissingBenchmark]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("attnbench")
    group.addoption(
        "--suite",
        action="append",
        default=[],
        help="a suite's name, or path/to/suite.toml; may be repeated [quick]",
    )
    group.addoption(
        "--backend",
        action="append",
        default=[],
        help="backends, comma-separated; or path/to/file.py:function [all]",
    )
    group.addoption("--device", default="auto", help="auto, cpu or cuda [auto: cuda if there]")


def pytest_configure(config: pytest.Config) -> None:
    if not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("suites/ needs pytest-benchmark; pip install pytest-benchmark")
    config.stash[PLANS] = {}
    config.stash[OUTCOMES] = {}
    config.stash[DESELECTED] = set()
    config.stash[MISSING] = []
    config.pluginmanager.register(Outcomes(config.stash[OUTCOMES]))
    try:
        _device(config)
        _backends(config.getoption("backend"))
        for suite in config.getoption("suite"):
            load_suite(suite).cases(_device(config))
    except AttnbenchError as error:
        # Here it is one line and exit code 4; during collection it would be a traceback.
        raise pytest.UsageError(str(error)) from error


def pytest_report_header(config: pytest.Config) -> str:
    return f"attnbench: device {_device(config)}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Ignore the files of suites that are not chosen; a file named on the command line is never ignored."""
    if collection_path.parent != HERE or not collection_path.name.startswith("test_"):
        return None
    bundled = list_suites()
    chosen = {name if name in bundled else GIVEN for name in config.getoption("suite") or ["quick"]}
    return True if collection_path.stem.removeprefix("test_") not in chosen else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "timed_if_right" not in metafunc.fixturenames:
        return
    config, function = metafunc.config, metafunc.function.__name__
    name = function.removeprefix("test_")
    suites = [s for s in config.getoption("suite") if s not in list_suites()] if name == GIVEN else [name]
    plans: dict[str, tuple[str, Planned]] = {}
    for suite in suites:
        for plan in load_suite(suite).cases(_device(config)):
            plans.setdefault(plan.case.id, (suite, plan))
    backends = _backends(config.getoption("backend"))
    config.stash[PLANS] |= {(function, case_id): plan for case_id, plan in plans.items()}
    rows = [
        (case_id, backend, direction)
        for case_id, (_, plan) in plans.items()
        for backend in backends
        for direction in (("fwd", "bwd") if plan.case.needs_backward else ("fwd",))
    ]
    metafunc.parametrize(("case", "backend", "direction"), rows, ids=["-".join(row) for row in rows])


@pytest.fixture(scope="session")
def measurements(
    pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Measurements]:
    """The backends of this session and its right answers."""
    session = Measurements(_device(pytestconfig), tmp_path_factory.mktemp("references"))
    yield session
    session.close()


@pytest.fixture
def timed_if_right(
    request: pytest.FixtureRequest,
    case: str,
    backend: str,
    direction: str,
    benchmark: Any,
    measurements: Measurements,
) -> Callable[[], None]:
    """Judge this case on this backend: time it if right, fail if wrong, skip if refused."""
    suite, plan = request.config.stash[PLANS][request.function.__name__, case]

    def run() -> None:
        off = is_off(benchmark)
        directions = 2 if plan.case.needs_backward else 1
        case_seconds = directions * seconds_per_direction(benchmark)
        settings = TimingSettings(rounds=1) if off else TimingSettings(case_seconds=case_seconds)
        result = measurements.of(plan, backend, settings)
        if result.status in DECLINED:
            pytest.skip(f"{backend} {result.status}: {result.reason.removeprefix(f'{backend}: ')}")
        if result.status != "ok":
            without_times(benchmark)
            pytest.fail(failure_message(result, suite), pytrace=False)
        seconds = seconds_of(result, direction)
        if off or not seconds:
            without_times(benchmark)
            return
        info = extra_info(result, direction, seconds) | {"suite": suite}
        put_in(benchmark, seconds, group=f"{case} {direction}", clock=result.clock, extra_info=info)

    return run


class Outcomes:
    """Records the outcome of each test, with the reason if it was skipped; the first phase that did not pass counts."""

    def __init__(self, outcomes: dict[str, tuple[str, str]]) -> None:
        self._outcomes = outcomes

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if self._outcomes.get(report.nodeid, ("passed", ""))[0] == "passed":
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
            self._outcomes[report.nodeid] = (report.outcome, reason.removeprefix("Skipped: "))


def pytest_deselected(items: list[pytest.Item]) -> None:
    for item in items:
        item.config.stash[DESELECTED].add(item.nodeid)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a compared run in which benchmarks of its baseline are missing."""
    config = session.config
    # Cut short (-x), it failed already, and what it did not reach is not missing.
    cut_short = session.shouldstop or session.shouldfail
    if config.option.collectonly or hasattr(config, "workerinput") or cut_short:
        return
    outcomes, deselected = config.stash[OUTCOMES], config.stash[DESELECTED]
    includes = _selection(config).includes
    missing = list(missing_benchmarks(baselines_of(config), timed_in(config), outcomes, includes, deselected))
    config.stash[MISSING] = missing
    if missing and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    # First, since pytest-benchmark ends its own summary with an exception if it finds a regression.
    missing = config.stash[MISSING]
    if missing:
        terminalreporter.section("benchmarks missing since the baseline", red=True)
    for benchmark in missing:
        terminalreporter.write_line(str(benchmark))


def _selection(config: pytest.Config) -> Selection:
    words = []
    for word in config.args:
        path, _, rest = word.partition("::")
        absolute = (config.invocation_params.dir / path).resolve()
        # A word that is no path below the root (--pyargs) may mean anything: it selects all.
        below = absolute.exists() and absolute.is_relative_to(config.rootpath)
        path = absolute.relative_to(config.rootpath).as_posix() if below else ""
        words.append(f"{path}::{rest}" if rest else path)
    backends = config.getoption("backend")
    return Selection(
        tuple(words),
        frozenset(config.getoption("suite") or ["quick"]),
        frozenset(_backends(backends)) if backends else frozenset(),
        config.getoption("keyword", "") or "",
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add GPU, driver and library versions; drop the current clock rate, which differs between runs."""
    from attnbench.measure import fingerprint

    environment = fingerprint(_device(config))
    del environment["git"]  # pytest-benchmark has commit_info
    machine_info["attnbench"] = environment
    for name in [name for name in machine_info["cpu"] if name.startswith("hz_actual")]:
        del machine_info["cpu"][name]


def _device(config: pytest.Config) -> str:
    return resolve_device(config.getoption("device"))


def _backends(options: list[str]) -> list[str]:
    """The named backends, or all; UsageError for an unknown name."""
    everything = [entry.name for entry in sorted(entries(), key=lambda entry: not entry.available)]
    names = [name.strip() for text in options for name in text.split(",") if name.strip()]
    for name in names:
        if name not in everything and ".py:" not in name:
            near = did_you_mean(name, everything)
            raise pytest.UsageError(f"no backend called {name!r}{near}; there are {', '.join(everything)}")
    return names or everything
