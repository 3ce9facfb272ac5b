"""Fixtures of the gate's tests: a result of one case, of which a test states only what differs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from attnbench.gate import ResultSet
from attnbench.sweep.result import Result

CASE = {"q_len": 64, "k_len": 64, "q_heads": 2, "kv_heads": 2, "head_dim": 16, "v_dim": 16, "dtype": "fp32"}
MACHINE = {"cpu": {"model": "A CPU"}, "gpu": None, "libraries": {"torch": "2.13.0"}, "threads": 2}


def _result(case_id: str = "q64-full-fwd", backend: str = "naive", **changes: Any) -> Result:
    fields: dict[str, Any] = {
        "case": {**CASE, "mask": "full", "direction": "fwd"},
        "case_id": case_id,
        "backend": backend,
        "status": "ok",
        "environment": "here",
        "error_over_budget": 0.4,
        "memory_bytes": {"fwd_peak": 64 << 20},
    }
    if changes.get("status", "ok") == "ok":
        fields["samples_ms"] = {"fwd": _rounds(1.0)}
        fields["rounds"] = [{"process": index // 2} for index in range(10)]
    else:
        fields["memory_bytes"] = {}
    return Result(**(fields | changes))


def _rounds(centre_ms: float, count: int = 10, spread: float = 0.01, seed: int = 3) -> list[list[float]]:
    rng = np.random.default_rng(seed)
    return (centre_ms * np.exp(np.abs(rng.normal(0, spread, (count, 4))))).tolist()


def _result_set(*results: Result, **machine: Any) -> ResultSet:
    return ResultSet(results, {"here": MACHINE | machine, "there": MACHINE | {"threads": 64}}, "set")


@pytest.fixture
def result() -> Callable[..., Result]:
    """`result(status="wrong")`: q64-full-fwd on naive, ok, 1 ms, 64 MiB, unless told otherwise."""
    return _result


@pytest.fixture
def rounds() -> Callable[..., list[list[float]]]:
    """`rounds(1.5)`: ten rounds of four samples just above 1.5 ms."""
    return _rounds


@pytest.fixture
def result_set() -> Callable[..., ResultSet]:
    return _result_set
