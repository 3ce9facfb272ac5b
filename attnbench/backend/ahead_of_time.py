"""Compile a backend's kernels for GPUs that are not here, in a process of its own, and read its committed table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from attnbench.backend.sources import BUNDLED, bundled_folder
from attnbench.errors import AttnbenchError, did_you_mean

COMPILED = "compiled.json"  # the committed table, in the backend's folder


def require_architectures(arch: str) -> None:
    """AttnbenchError where one of the names, split at commas, is no architecture's."""
    for each in arch.split(","):
        if not re.fullmatch(r"sm_\d{2,3}|gfx[0-9a-f]+", each):
            raise AttnbenchError(
                f"no architecture {each!r}; NVIDIA's are sm_80, sm_90, sm_100, AMD's as gfx942"
            )


def compiled_rows(
    backend: str, arch: str, only: str = "", folder: Path | None = None
) -> list[dict[str, Any]]:
    """One record per architecture, specimen and kernel, from a process that compiles instead of interpreting.

    `folder` takes the backends from elsewhere (a worktree of a revision).
    """
    require_architectures(arch)
    package = _package(backend, folder)
    command = [sys.executable, "-m", f"{package}.ahead_of_time", "--arch", arch, "--only", only]
    with tempfile.TemporaryDirectory(prefix="attnbench-") as scratch:
        environment = dict(os.environ)
        if folder is not None:
            # Found before the installed package, under its name: what is in it imports by that.
            (Path(scratch) / package.split(".")[0]).symlink_to(folder.resolve(), target_is_directory=True)
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = f"{scratch}{os.pathsep}{before}" if before else scratch
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AttnbenchError(f"{backend} could not be compiled for {arch}: {last[0]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    found = {row["specimen"] for row in rows}
    if not rows and not only:
        raise AttnbenchError(f"{backend} compiled nothing for {arch}")  # which no table would be worse than
    for name in filter(None, only.split(",")):
        if name not in found:
            known = sorted({row["specimen"] for row in committed(backend, folder)} | found)
            near = did_you_mean(name, known)
            raise AttnbenchError(f"{backend} has no specimen {name!r}{near}; there are {', '.join(known)}")
    return rows


def committed(backend: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The table that is kept with the backend."""
    path = (folder or bundled_folder()) / backend / COMPILED
    if not path.is_file():
        raise AttnbenchError(f"{backend} has no table of compiled kernels at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def _package(backend: str, folder: Path | None = None) -> str:
    if not ((folder or bundled_folder()) / backend / "ahead_of_time.py").is_file():
        raise AttnbenchError(f"{backend} does not compile ahead of time; triton does")
    return f"{BUNDLED}.{backend}"
