"""torch's waiting threads sleep soon when nothing is timed, as OpenMP itself reports."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

SET = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
CASE = '{"q_len": 1, "k_len": 1, "q_heads": 1, "head_dim": 16, "dtype": "fp32"}'


@pytest.mark.parametrize("policy", [None, "ACTIVE"])
def test_a_check_lets_waiting_threads_sleep_soon_unless_told_otherwise(policy: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SET}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    if policy is not None:
        environment["OMP_WAIT_POLICY"] = policy
    program = "from attnbench.cli import main; main()"
    command = [sys.executable, "-c", program, "check", "naive", "--device", "cpu", "--case", CASE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    turns = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if turns is None:
        pytest.skip("torch's OpenMP is not GNU's, and does not tell how long a thread waits awake")
    assert (int(turns[1]) == 3000) is (policy is None)


def test_a_check_from_python_waits_as_one_from_the_shell_and_workers_as_the_caller_says() -> None:
    environment = {name: value for name, value in os.environ.items() if name not in SET}
    environment["OMP_DISPLAY_ENV"] = "VERBOSE"
    program = (
        f"import json, attnbench as ab\nab.check('naive', device='cpu', case=json.loads('{CASE}'))\n"
        "from attnbench.sweep.starting import worker_environment\n"
        "print('given' if 'GOMP_SPINCOUNT' in worker_environment('cpu') else 'not given')"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout == "not given\n"
    turns = re.search(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)
    if turns is None:
        pytest.skip("torch's OpenMP is not GNU's, and does not tell how long a thread waits awake")
    assert int(turns[1]) == 3000


def test_what_the_caller_sets_reaches_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    from attnbench.sweep.starting import worker_environment

    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert worker_environment("cpu")["GOMP_SPINCOUNT"] == "77"
