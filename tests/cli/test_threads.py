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
