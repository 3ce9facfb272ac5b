"""A small case, of which a test states only what differs, and an environment that each test leaves as it was."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from attnbench.problem import Case

# Before torch is loaded: threads that wait awake for long starve each other where the cores are shared; none is timed.
os.environ.setdefault("GOMP_SPINCOUNT", "3000")
# Tests share their references, and leave those of the user alone.
if "ATTNBENCH_CACHE" not in os.environ:
    os.environ["ATTNBENCH_CACHE"] = tempfile.mkdtemp(prefix="attnbench-references-")
    atexit.register(shutil.rmtree, os.environ["ATTNBENCH_CACHE"], ignore_errors=True)
# A shell without job control starts its background jobs with Ctrl-C ignored, and what they start ignores it too.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _a_case(**changes: Any) -> Case:
    small: dict[str, Any] = {"q_len": 16, "k_len": 16, "q_heads": 2, "head_dim": 8, "dtype": "fp32"}
    return Case(**(small | changes))


@pytest.fixture
def a_case() -> Callable[..., Case]:
    """`a_case(mask=Causal())`: B 1, H 2, Q = K = 16, D 8, fp32, full, forward, unless told otherwise."""
    return _a_case


def _ours() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("ATTNBENCH")}


@pytest.fixture(autouse=True)
def nothing_left_in_the_environment() -> Iterator[None]:
    """A variable of ours that outlives its test changes the tests after it, in one order of them only."""
    before = _ours()
    yield
    after = _ours()
    for name in after:
        del os.environ[name]
    os.environ.update(before)
    assert after == before, f"the test leaves {after} in the environment, where {before} was"
