"""How does `pytest suites/` become a sweep? One test a case, backend and direction, timed only where it is right.

    pytest suites/                                    the suite quick on every backend
    pytest suites/test_core.py --backend naive,flex   another suite, fewer backends
    pytest suites/ --suite core --suite mine.toml     suites by name, or a file of one's own
    pytest suites/ -k "causal and naive and bwd"      by parts of the case's id, backend, direction

pytest-benchmark's options work on it (--benchmark-json, -compare, -autosave, -group-by); --benchmark-max-time is how
long a direction of a case is timed, and --benchmark-disable checks without keeping times. Where a run is compared
(--benchmark-compare), a benchmark of the baseline that it has no times of fails it; the plug-in would pass in silence.
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
    seconds_a_case,
    timed_in,
    without_times,
)
from attnbench_suites.measured import Measurements, extra_info, seconds_of, verdict
from attnbench_suites.missing import Asked, Lost, lost, told

from attnbench.backend import entries
from attnbench.device import resolve_device
from attnbench.errors import AttnbenchError, did_you_mean
from attnbench.sweep.case_run import Protocol
from attnbench.sweep.suite import Planned, list_suites, load_suite

HERE = Path(__file__).parent
GIVEN = "given"  # test_given.py takes the suites that are files of the user's
PLANS = pytest.StashKey[dict[tuple[str, str], tuple[str, Planned]]]()
OUTCOMES = pytest.StashKey[dict[str, tuple[str, str]]]()
DESELECTED = pytest.StashKey[set[str]]()
LOST = pytest.StashKey[list[Lost]]()


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
    config.stash[LOST] = []
    config.pluginmanager.register(Outcomes(config.stash[OUTCOMES]))
    try:
        _device(config)
        _backends(config.getoption("backend"))
        for suite in config.getoption("suite"):
            load_suite(suite).cases(_device(config))
    except AttnbenchError as problem:
        # Here it is one line and exit code 4; while collecting it would be a traceback.
        raise pytest.UsageError(str(problem)) from problem


def pytest_report_header(config: pytest.Config) -> str:
    return f"attnbench: device {_device(config)}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of a folder, only the files of chosen suites; a file that is named itself is never ignored."""
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
    config.stash[PLANS] |= {(function, case_id): found for case_id, found in plans.items()}
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
    """The backends of this session and the folder of the right answers."""
    kept = Measurements(_device(pytestconfig), tmp_path_factory.mktemp("references"))
    yield kept
    kept.close()


@pytest.fixture
def timed_if_right(
    request: pytest.FixtureRequest,
    case: str,
    backend: str,
    direction: str,
    benchmark: Any,
    measurements: Measurements,
) -> Callable[[], None]:
    """Judge this case on this backend; time it where it is right, fail where it is wrong, skip what is refused."""
    suite, plan = request.config.stash[PLANS][request.function.__name__, case]

    def run() -> None:
        off = is_off(benchmark)
        directions = 2 if plan.case.needs_backward else 1
        allowed = Protocol(rounds=1) if off else Protocol(case_seconds=directions * seconds_a_case(benchmark))
        result = measurements.of(plan, backend, allowed)
        if result.status in ("refused", "unavailable"):
            pytest.skip(f"{backend} {result.status}: {result.reason.removeprefix(f'{backend}: ')}")
        if result.status != "ok":
            without_times(benchmark)
            pytest.fail(verdict(result, suite), pytrace=False)
        seconds = seconds_of(result, direction)
        if off or not seconds:
            without_times(benchmark)
            return
        found = extra_info(result, direction, seconds) | {"suite": suite}
        put_in(benchmark, seconds, group=f"{case} {direction}", clock=result.clock, extra_info=found)

    return run


class Outcomes:
    """Notes how each test ended, with the reason where it was skipped; the worst of its phases counts."""

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
    """Fail a compared run that lost benchmarks of its baseline."""
    config = session.config
    # Cut short (-x), it failed already, and what it did not reach is not lost.
    cut_short = session.shouldstop or session.shouldfail
    if config.option.collectonly or hasattr(config, "workerinput") or cut_short:
        return
    outcomes, deselected = config.stash[OUTCOMES], config.stash[DESELECTED]
    found = list(lost(baselines_of(config), timed_in(config), outcomes, _asked(config).has, deselected))
    config.stash[LOST] = found
    if found and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(tryfirst=True)
def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    # First, since the plug-in ends its own summary with an exception where it finds a regression.
    found = config.stash[LOST]
    if found:
        terminalreporter.section("benchmarks lost since the baseline", red=True)
    for line in told(found):
        terminalreporter.write_line(line)


def _asked(config: pytest.Config) -> Asked:
    words = []
    for word in config.args:
        path, _, rest = word.partition("::")
        there = (config.invocation_params.dir / path).resolve()
        # What is no path below the root (--pyargs) may stand for anything: better one too many is missed.
        below = there.exists() and there.is_relative_to(config.rootpath)
        path = there.relative_to(config.rootpath).as_posix() if below else ""
        words.append(f"{path}::{rest}" if rest else path)
    given = config.getoption("backend")
    return Asked(
        tuple(words),
        frozenset(config.getoption("suite") or ["quick"]),
        frozenset(_backends(given)) if given else frozenset(),
        config.getoption("keyword", "") or "",
    )


def pytest_benchmark_update_machine_info(config: pytest.Config, machine_info: dict[str, Any]) -> None:
    """Add GPU, driver and library versions; drop the clock of the moment, which differs from run to run."""
    from attnbench.measure import fingerprint

    found = fingerprint(_device(config))
    del found["git"]  # the plug-in has commit_info
    machine_info["attnbench"] = found
    for name in [name for name in machine_info["cpu"] if name.startswith("hz_actual")]:
        del machine_info["cpu"][name]


def _device(config: pytest.Config) -> str:
    return resolve_device(config.getoption("device"))


def _backends(given: list[str]) -> list[str]:
    """The named backends, or all; UsageError where a name is unknown."""
    known = [entry.name for entry in sorted(entries(), key=lambda entry: not entry.available)]
    names = [name.strip() for text in given for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known and ".py:" not in name:
            raise pytest.UsageError(
                f"no backend called {name!r}{did_you_mean(name, known)}; there are {', '.join(known)}"
            )
    return names or known
