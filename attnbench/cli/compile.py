"""`attnbench compile`: what do a backend's kernels become on GPUs that are not here, and did that get worse?"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import typer

from attnbench.cli.console import out, print_json, remark
from attnbench.errors import AttnbenchError, did_you_mean

COMPILED = "compiled.json"  # the committed table, in the backend's folder
SHOWN = (
    "arch",
    "kernel",
    "specimen",
    "config",
    "registers",
    "spill_bytes",
    "shared_bytes",
    "matrix_instructions",
)


def compile_kernels(
    backend: str = typer.Argument("triton", help="A backend whose kernels compile without their GPU."),
    arch: str = typer.Option("sm_80,sm_90,sm_100", "--arch", help="Architectures; AMD's too, e.g. gfx942."),
    only: str = typer.Option("", "--only", help="Specimens, e.g. bf16-d128-causal,bf16-d64-causal."),
    check: bool = typer.Option(
        False, "--check", help="Hold it against the committed table; exit 1 where worse."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Compile a backend's kernels ahead of time: registers, spills, shared memory and matrix instructions.

    Example: [bold]attnbench compile triton --arch sm_90 --only bf16-d128-causal[/bold]
    """
    rows = compiled_rows(backend, arch, only)
    if as_json:
        print_json(rows)
    else:
        _show(rows)
    if check and (worse := against_the_table(rows, backend)):
        for line in worse:
            remark(line)
        raise typer.Exit(1)


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


def against_the_table(rows: list[dict[str, Any]], backend: str) -> list[str]:
    """What is worse than the committed table, or not in it, in sentences."""
    from attnbench.gate.compiled import regressions, unknown

    table = committed(backend)
    found = [f"{_named(row)} {said}" for row, said in regressions(rows, table)]
    new = [
        f"{_named(row)} is not in the table; write it anew and look at the difference"
        for row in unknown(rows, table)
    ]
    return found + new


def _named(row: dict[str, Any]) -> str:
    return f"{row['kernel']} of {row['specimen']} on {row['arch']}"


def committed(backend: str, folder: Path | None = None) -> list[dict[str, Any]]:
    """The table that is kept with the backend."""
    from attnbench.backend.sources import bundled_folder

    path = (folder or bundled_folder()) / backend / COMPILED
    if not path.is_file():
        raise AttnbenchError(f"{backend} has no table of compiled kernels at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def _package(backend: str, folder: Path | None = None) -> str:
    from attnbench.backend.sources import BUNDLED, bundled_folder

    if not ((folder or bundled_folder()) / backend / "ahead_of_time.py").is_file():
        raise AttnbenchError(f"{backend} does not compile ahead of time; triton does")
    return f"{BUNDLED}.{backend}"


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in SHOWN:
        table.add_column(name, justify="right" if name in SHOWN[4:] else "left")
    for row in rows:
        table.add_row(*(str(row[name]) for name in SHOWN))
    out().print(table)
