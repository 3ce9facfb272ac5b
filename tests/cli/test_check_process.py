"""A function that kills its process, or hangs, costs one call; a signal or the time limit tells what was found."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

FUNCTIONS = '''
import os, time


def plain(q, k, v, mask, scale):
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    k, v = (x.float().repeat_interleave(q.shape[1] // k.shape[1], 1) for x in (k, v))
    s = (q.float() @ k.mT * scale).masked_fill(~allowed, float("-inf"))
    return s.softmax(-1).masked_fill(~allowed.any(-1, keepdim=True), 0) @ v


def is_first(name):
    """Whether nobody was here: a function that crashes on every call has a process started for each."""
    try:
        os.close(os.open(os.path.join(os.path.dirname(__file__), name), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def aborts(q, k, v, *, mask, scores, scale):
    if q.shape[2] == 1 and is_first("aborted"):
        os.abort()
    return plain(q, k, v, mask, scale)


def exits(q, k, v, *, mask, scores, scale):
    if q.shape[2] == 1 and is_first("exited"):
        os._exit(7)
    return plain(q, k, v, mask, scale)


def sleeps(q, k, v, *, mask, scores, scale):
    if q.shape[2] == 1 and is_first("asleep"):
        time.sleep(1000)
    return plain(q, k, v, mask, scale)
'''
SMALL = (
    "batch == 1 and q_len in (1, 64) and k_len <= 64 and head_dim == 64 and v_dim == 64 and mask == 'full'"
)
REQUEST = (
    "--where",
    f"{SMALL} and scores == ()",
    "--dtype",
    "fp32",
    "--direction",
    "fwd",
    "--only",
    "oracle",
)


def command(tmp_path: Path, function: str, *more: str) -> list[str]:
    file = tmp_path / "mine.py"
    file.write_text(FUNCTIONS)
    start = "from attnbench.cli import main; main()"
    return [sys.executable, "-c", start, "check", f"{file}:{function}", *REQUEST, *more]


@pytest.mark.parametrize(
    ("function", "words"),
    [("aborts", "crashed: killed by SIGABRT"), ("exits", "crashed: exited with status 7")],
)
def test_a_crash_is_told_with_its_case_and_the_rest_goes_on(
    function: str, words: str, tmp_path: Path
) -> None:
    done = subprocess.run(command(tmp_path, function), capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert words in done.stdout
    assert "suspected limit" not in done.stdout
    assert '"q_len": 1,' in done.stdout
    assert not done.stdout.splitlines()[1].startswith("0 checks passed")


def test_a_call_that_does_not_return_is_ended_and_told(tmp_path: Path) -> None:
    started = command(tmp_path, "sleeps", "--timeout", "1")
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "crashed: no answer after 1 s" in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_tells_what_was_found_and_exits_130(number: int, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(tmp_path, "sleeps"), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "asleep").exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "stopped by Ctrl-C or a signal" in stdout


def test_at_the_time_limit_it_tells_what_was_found_and_exits_3(tmp_path: Path) -> None:
    started = command(tmp_path, "sleeps", "--time-limit", "8")
    done = subprocess.run(started, capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stdout + done.stderr
    assert "stopped by the time limit" in done.stdout
