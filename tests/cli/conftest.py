"""Fixtures of the command line's tests: a runner, and result folders made without running anything."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.problem import Case
from attnbench.sweep.result import Result
from attnbench.sweep.store import Store

MACHINE = {"cpu": {"model": "A CPU"}, "gpu": None, "libraries": {"torch": "2.13.0"}, "threads": 2}


def _a_result(case: Case, backend: str = "naive", milliseconds: float = 1.0, **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "case": case.to_json(),
        "case_id": case.id,
        "backend": backend,
        "status": "ok",
        "environment": "here",
        "device": "cpu",
        "machine": "A CPU, 2 cores",
        "memory_bytes": {"fwd_peak": 1 << 20},
        "least_peak_bytes": case.least_peak_bytes,
        "flops": {"fwd": case.flops("fwd")},
        "least_bytes": {"fwd": case.least_bytes("fwd")},
        "error_over_budget": 0.5,
        "samples_ms": {"fwd": [[milliseconds, milliseconds * 1.01]] * 8},
        "rounds": [{"process": index // 2} for index in range(8)],
    }
    if changes.get("status", "ok") != "ok":
        fields |= {"samples_ms": {}, "memory_bytes": {}, "error_over_budget": None}
    return Result(**(fields | changes))


@pytest.fixture
def a_result() -> Callable[..., Result]:
    """`a_result(case, "flex", 2.0, status="wrong")`: ok, 1 ms, 1 MiB, unless told otherwise."""
    return _a_result


@pytest.fixture
def stored(tmp_path: Path) -> Callable[..., Path]:
    """`stored("base", result, ...)`: the folder that `attnbench run` would have left; `threads` change the machine."""

    def store(name: str, *results: Result, **machine: Any) -> Path:
        made = Store(tmp_path / name)
        with made.writing():
            for result in results:
                made.append(result)
            made.add_environment("here", MACHINE | machine)
            made.add_environment("there", MACHINE | {"threads": 64})
        return made.folder

    return store


@pytest.fixture
def attnbench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`attnbench("gate", "--base", a)`: run in this process; has .exit_code, .stdout, .stderr.

    `check` calls the backend in this process, too: another one would import torch. test_check_process.py starts some.
    """
    from attnbench.cli.app import app

    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")

    def invoke(*arguments: object) -> Any:
        words = [str(argument) for argument in arguments]
        return CliRunner().invoke(app, words + (["--in-process"] if words[:1] == ["check"] else []))

    return invoke
