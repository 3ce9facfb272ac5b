"""`attnbench check --watch` checks again when the backend's file is saved, and ends with Ctrl-C."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

PROGRAM = [sys.executable, "-c", "from attnbench.cli import main; main()"]
CASE = '{"q_len": 4, "k_len": 4, "q_heads": 1, "head_dim": 16, "dtype": "fp32"}'
RIGHT = (
    "import torch\nfrom part import factor\n\ndef mine(q, k, v, **options):\n"
    "    return factor * torch.nn.functional.scaled_dot_product_attention(q, k, v)\n"
)


def next_line(lines: queue.Queue[str], start: str) -> str:
    while True:
        line = lines.get(timeout=120)
        if line.startswith(start):
            return line


def test_a_saved_file_is_checked_again_with_the_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(RIGHT)
    (tmp_path / "part.py").write_text("factor = 1\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [*PROGRAM, "check", "mine.py:mine", "--case", CASE, "--device", "cpu", "--watch"]
    with subprocess.Popen(
        command,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    ) as running:
        lines: queue.Queue[str] = queue.Queue()
        stdout = running.stdout
        assert stdout is not None
        threading.Thread(target=lambda: list(map(lines.put, stdout)), daemon=True).start()
        try:
            assert "right" in next_line(lines, "mine.py:mine:")
            next_line(lines, "waiting for a change")
            (tmp_path / "part.py").write_text("factor = 2.5\n")
            assert "WRONG" in next_line(lines, "mine.py:mine:")
            next_line(lines, "waiting for a change")
            (tmp_path / "mine.py").write_text("def mine(:\n")  # does not even load: the watch goes on
            next_line(lines, "waiting for a change")
            (tmp_path / "mine.py").write_text(RIGHT)
            (tmp_path / "part.py").write_text("factor = 1.0\n")
            assert "right" in next_line(lines, "mine.py:mine:")
            next_line(lines, "waiting for a change")
        finally:
            os.killpg(running.pid, signal.SIGINT)
        assert running.wait(timeout=60) == 130


def test_a_backend_without_a_file_cannot_be_watched(attnbench: Any) -> None:
    done = attnbench("check", "nowhere.py:mine", "--watch")
    assert done.exit_code == 2
    assert "no file 'nowhere.py'" in done.stderr


@pytest.mark.parametrize("name", ["naive", "triton"])
def test_the_files_of_a_bundled_backend_are_found(name: str) -> None:
    from attnbench.cli.watch import folder_of

    assert any(folder_of(name).glob("*.py"))
