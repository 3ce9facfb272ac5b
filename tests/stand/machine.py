"""Programs run on a machine that has two fake CUDA devices: their processes find tests/stand/site on their path."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

SITE = Path(__file__).parent / "site"
ROOT = Path(__file__).parents[2]


def environment() -> dict[str, str]:
    """The environment of such a machine; its processes use one thread, and no interpreter that other tests ask for."""
    ours = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    path = os.pathsep.join(filter(None, [str(SITE), os.environ.get("PYTHONPATH")]))
    return ours | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def on_fake_cuda(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run `python WORDS...` there."""
    return subprocess.run(
        [sys.executable, *words], env=environment(), cwd=folder, capture_output=True, text=True, check=False
    )


def attnbench(*words: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run the command `attnbench WORDS...` there."""
    program = "import sys; from attnbench.cli import main; sys.exit(main())"
    return on_fake_cuda("-c", program, *words, folder=folder)
