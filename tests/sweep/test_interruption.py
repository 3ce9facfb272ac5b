"""A sweep killed half-way is completed by --resume, and no worker outlives it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from attnbench.sweep import Store

SWEEP = """
import sys
from dataclasses import dataclass
from attnbench.problem import Case
from attnbench.sweep import Finished, run_sweep

@dataclass(frozen=True)
class Plan:
    case: Case
    group: str = ""
    source: str = ""

def tell(event):
    if isinstance(event, Finished):
        print(event.result.case_id, event.result.backend, flush=True)

plans = [Plan(Case(q_len=n, k_len=n, q_heads=2, head_dim=8, dtype="fp32")) for n in (8, 16, 24, 32, 40)]
run_sweep(plans, sys.argv[2:], device="cpu", out=sys.argv[1], rounds=5, resume=True, on_event=tell)
"""


def sweep(folder: Path, *backends: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SWEEP, str(folder), *backends]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def gone(processes: list[psutil.Process], within_s: float = 10.0) -> bool:
    _, alive = psutil.wait_procs(processes, timeout=within_s)
    return not alive


def test_killed_half_way_and_resumed_is_the_whole_sweep_with_no_case_run_twice(folder: Path) -> None:
    backends = ("naive", "sdpa_flash")
    first = sweep(folder, *backends)
    assert first.stdout is not None
    lines = [first.stdout.readline() for _ in range(5)]
    workers = psutil.Process(first.pid).children(recursive=True)
    first.kill()
    lines += first.communicate()[0].splitlines(keepends=True)
    assert len(workers) >= 3
    assert gone(workers), "workers outlive a runner that was killed"
    kept = [json.dumps(r.to_json()) for r in Store(folder).read()]
    assert 5 <= len(kept) < 10

    second = sweep(folder, *backends)
    out, err = second.communicate(timeout=120)
    assert second.returncode == 0, err
    rows = Store(folder).read()
    assert [json.dumps(r.to_json()) for r in rows[: len(kept)]] == kept
    counted = Counter((r.case["q_len"], r.backend) for r in rows)
    assert counted == Counter((n, b) for n in (8, 16, 24, 32, 40) for b in backends)
    assert len(out.splitlines()) == 10 - len(kept)
    assert {r.status for r in rows} == {"ok"}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")
@pytest.mark.parametrize("how", ["SIGINT", "SIGKILL"])
def test_a_worker_that_hangs_in_c_code_ends_with_its_runner(folder: Path, tmp_path: Path, how: str) -> None:
    path = tmp_path / "hangs.py"
    # A sleep of libc's called with the GIL held: no thread of Python can end this process.
    path.write_text(
        "import ctypes, os, pathlib\n"
        "def attention(q, k, v, **options):\n"
        f"    pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(os.getpid()))\n"
        "    ctypes.PyDLL(None).sleep(600)\n"
    )
    runner = sweep(folder, f"{path}:attention")
    worker = psutil.Process(_number_in(tmp_path / "pid", runner))
    runner.send_signal(getattr(signal, how))
    _, err = runner.communicate(timeout=30)
    assert runner.returncode != 0
    assert ("KeyboardInterrupt" in err) == (how == "SIGINT")
    assert gone([worker])


def _number_in(path: Path, runner: Any, within_s: float = 60.0) -> int:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline and runner.poll() is None:
        if path.exists() and path.read_text():
            return int(path.read_text())
        time.sleep(0.05)
    raise AssertionError(f"the plug-in was never called: {runner.communicate()[1]}")
