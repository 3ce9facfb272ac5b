"""The cost of `attnbench check` per backend on this machine: seconds and memory, printed; nothing is asserted.

Run by `make perf`, or for some backends: `python tests/perf/conformance.py naive flex`. Each check is its own process,
so that the peak memory is its own; the machine should be idle. A second check finds the references of the first.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from attnbench.backend import resolve
from attnbench.backend.registry import entries
from attnbench.problem import Case

PLAIN = Case(q_len=64, k_len=64, q_heads=2, head_dim=64, dtype="fp32")
SLOW = ("triton",)  # in Triton's interpreter: minutes, so only by name


def cpu_backends() -> list[str]:
    """The backends in this environment that take plain attention on a CPU."""
    names = [entry.name for entry in entries() if entry.available and not entry.environment]
    return [name for name in names if name not in SLOW and resolve(name).refuses(PLAIN, "cpu") is None]


def checked(name: str, level: str, references: str) -> tuple[float, float, float, str]:
    """Seconds, processor seconds and peak MiB of `attnbench check NAME`, and its first line."""
    environment = os.environ | {"ATTNBENCH_CACHE": references}
    program = str(Path(sys.executable).with_name("attnbench"))
    command = [program, "check", name, "--device", "cpu", "--level", level]
    start = time.perf_counter()
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(command, env=environment, stdout=pipe, stderr=quiet, text=True) as child:
        assert child.stdout is not None
        lines = child.stdout.read().splitlines()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - start
    return seconds, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024, lines[0] if lines else "no answer"


def main() -> None:
    title = "attnbench check, level standard"
    table = Table("backend", "s", "CPU s", "peak MiB", "s again", "CPU s again", "verdict", title=title)
    for name in sys.argv[1:] or cpu_backends():
        with tempfile.TemporaryDirectory() as references:
            seconds, busy, peak, verdict = checked(name, "standard", references)
            again, busy_again, _, _ = checked(name, "standard", references)
        figures = (seconds, busy, peak, again, busy_again)
        table.add_row(name, *(f"{figure:.0f}" for figure in figures), verdict.partition("(")[0])
    Console().print(table)


if __name__ == "__main__":
    main()
