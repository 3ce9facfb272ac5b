"""Compile a backend's kernels for GPUs that are not here, in a separate process, and read its committed table."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from attnbench.backend.sources import BACKENDS_PACKAGE, bundled_folder
from attnbench.errors import AttnbenchError, did_you_mean

COMPILED = "compiled.json"  # the committed table, in the backend's folder


def require_architectures(arch: str) -> None:
    """AttnbenchError if one of the names, split at commas, is not an architecture."""
    for each in arch.split(","):
        if not re.fullmatch(r"sm_\d{2,3}|gfx[0-9a-f]+", each):
            raise AttnbenchError(
                f"no architecture {each!r}; NVIDIA's are sm_80, sm_90, sm_100, AMD's like gfx942"
            )


def compiled_rows(
    backend: str, arch: str, only: str = "", folder: Path | None = None
) -> list[dict[str, Any]]:
    """One record per architecture, specimen and kernel, from a process that compiles instead of interpreting.

    `only` names specimens, separated by commas. `folder` is another folder of backends (a worktree of a revision).
    """
    require_architectures(arch)
    package = _package(backend, folder)
    command = [sys.executable, "-m", f"{package}.ahead_of_time", "--arch", arch, "--only", only]
    with tempfile.TemporaryDirectory(prefix="attnbench-") as scratch:
        environment = dict(os.environ)
        if folder is not None:
            # Placed before the installed package, under the same name: its files import each other by that name.
            (Path(scratch) / package.split(".")[0]).symlink_to(folder.resolve(), target_is_directory=True)
            before = environment.get("PYTHONPATH")
            environment["PYTHONPATH"] = f"{scratch}{os.pathsep}{before}" if before else scratch
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AttnbenchError(f"{backend} could not be compiled for {arch}: {last[0]}")
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    compiled = {row["specimen"] for row in rows}
    if not rows and not only:
        raise AttnbenchError(
            f"{backend} compiled nothing for {arch}"
        )  # or an empty result would pass every check
    for name in filter(None, only.split(",")):
        if name not in compiled:
            specimens = sorted({row["specimen"] for row in committed(backend, folder)} | compiled)
            near = did_you_mean(name, specimens)
            raise AttnbenchError(
                f"{backend} has no specimen {name!r}{near}; there are {', '.join(specimens)}"
            )
    return rows


def committed(backend: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The table that is committed beside the backend."""
    path = (folder or bundled_folder()) / backend / COMPILED
    if not path.is_file():
        raise AttnbenchError(f"{backend} has no table of compiled kernels at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def _package(backend: str, folder: Path | None = None) -> str:
    if not ((folder or bundled_folder()) / backend / "ahead_of_time.py").is_file():
        raise AttnbenchError(f"{backend} does not compile ahead of time; triton does")
    return f"{BACKENDS_PACKAGE}.{backend}"
