"""An interrupted self-test ends, and its processes with it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import psutil

PROGRAM = "from attnbench.cli import main; main()"
WAIT_S = 60  # the plan takes minutes


def at_work(program: psutil.Process) -> list[psutil.Process]:
    """What the program started, once that is its two workers (and the process that keeps their semaphores)."""
    until = time.monotonic() + WAIT_S
    while len(found := program.children(recursive=True)) < 3:
        assert time.monotonic() < until, "no workers were started"
        time.sleep(0.1)
    return found


def test_a_self_test_that_is_ended_leaves_no_process() -> None:
    command = [sys.executable, "-c", PROGRAM, "selftest", "--jobs", "2"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as program:
        try:
            workers = at_work(psutil.Process(program.pid))
            program.send_signal(signal.SIGTERM)
            assert program.wait(WAIT_S) == 130
            _, alive = psutil.wait_procs(workers, WAIT_S)
            assert not alive
        finally:
            program.kill()
