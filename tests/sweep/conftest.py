"""Plug-ins that misbehave, and cases that take a millisecond."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from attnbench.problem import Case

BAD = """
import ctypes, os, signal, sys, time
import torch

def right(q, k, v, *, mask, scores, scale):
    allowed = mask.materialize(batch=q.shape[0], heads=q.shape[1], q_len=q.shape[2], k_len=k.shape[2])
    s = (q @ k.transpose(-1, -2)) * scale
    return s.masked_fill(~allowed, float("-inf")).softmax(-1) @ v

def bad(q):
    return q.shape[2] == 16  # the other cases are answered correctly: later cases must not be affected

def segfaults(q, k, v, **options):
    if bad(q):
        ctypes.string_at(0)
    return right(q, k, v, **options)

def sleeps(q, k, v, **options):
    while bad(q):
        time.sleep(1)
    return right(q, k, v, **options)

def hoards(q, k, v, **options):
    kept = []
    while bad(q):
        kept.append(torch.ones(1 << 22))  # 16 MiB
    return right(q, k, v, **options)

def is_wrong(q, k, v, **options):
    return right(q, k, v, **options) * (1.01 if bad(q) else 1)

def raises(q, k, v, **options):
    if bad(q):
        raise ValueError("no such head\\nand a second line")
    return right(q, k, v, **options)

def refuses(q, k, v, **options):
    if bad(q):
        raise NotImplementedError("not for 16 queries")
    return right(q, k, v, **options)

def prints(q, k, v, **options):
    if bad(q):
        for _ in range(64):
            os.write(1, b"x" * (1 << 16))
            os.write(2, b'{"ok": {}}\\n')
    return right(q, k, v, **options)

def changes_inputs(q, k, v, **options):
    out = right(q, k, v, **options)
    if bad(q):
        k.mul_(2)
    return out

def is_killed(q, k, v, **options):
    if bad(q):
        os.kill(os.getpid(), signal.SIGKILL)
    return right(q, k, v, **options)

def ends_its_process(q, k, v, **options):
    if bad(q):
        os.write(2, b"could not find the moon\\n")
        os._exit(7)
    return right(q, k, v, **options)

def exits(q, k, v, **options):
    if bad(q):
        sys.exit("enough")
    return right(q, k, v, **options)
"""


@dataclass(frozen=True)
class Plan:
    """A planned case of a suite."""

    case: Case
    group: str = ""
    source: str = ""


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Workers use one thread: two on a busy core wait for each other at every barrier."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="session")
def plans() -> Callable[..., list[Plan]]:
    """`plans(16, 24)`: one plan per length; changes apply to all."""

    def make(*lengths: int, **changes: Any) -> list[Plan]:
        small: dict[str, Any] = {"q_heads": 2, "head_dim": 8, "dtype": "fp32"}
        return [Plan(Case(q_len=n, k_len=n, **(small | changes))) for n in lengths]

    return make


@pytest.fixture(scope="session")
def bad_plug_ins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """`bad_plug_ins("segfaults")`: the backend of that name, as a path and a function."""
    path = tmp_path_factory.mktemp("plug_ins") / "bad.py"
    path.write_text(BAD)
    return lambda name: f"{path}:{name}"


@pytest.fixture
def keys_of() -> Callable[[Sequence[Any]], list[tuple[Any, ...]]]:
    """The keys of results, sorted."""
    return lambda results: sorted(result.key for result in results)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The result folder of a sweep."""
    return tmp_path / "out"
