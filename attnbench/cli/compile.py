"""`attnbench compile`: what do a backend's kernels become on GPUs that are not here, and did that get worse?"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import typer

from attnbench.cli.console import out, print_json, remark
from attnbench.errors import AttnbenchError

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
    worse = regressions(rows, committed(backend)) if check else []
    for line in worse:
        remark(line)
    if worse:
        raise typer.Exit(1)


def compiled_rows(backend: str, arch: str, only: str = "") -> list[dict[str, Any]]:
    """One record per architecture, specimen and kernel, from a process that compiles instead of interpreting."""
    command = [sys.executable, "-m", f"{_package(backend)}.ahead_of_time", "--arch", arch, "--only", only]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise AttnbenchError(f"{backend} could not be compiled for {arch}: {last[0]}")
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def committed(backend: str) -> list[dict[str, Any]]:
    """The table that is kept with the backend."""
    from attnbench.backend.registry import bundled_folder

    path = bundled_folder() / backend / COMPILED
    if not path.is_file():
        raise AttnbenchError(f"{backend} has no table of compiled kernels at {path}")
    return json.loads(path.read_text(encoding="utf-8"))


def regressions(now: list[dict[str, Any]], before: list[dict[str, Any]]) -> list[str]:
    """What got worse than the table: more spills, fewer matrix instructions, too much shared memory, a new kernel
    that the table lacks."""
    table = {_key(row): row for row in before}
    found = []
    for row in now:
        where = f"{row['kernel']} of {row['specimen']} on {row['arch']}"
        old = table.get(_key(row))
        if old is None:
            found.append(f"{where} is not in the table; write it anew and look at the difference")
            continue
        if row["spill_bytes"] > old["spill_bytes"]:
            found.append(f"{where} spills {row['spill_bytes']} bytes, {old['spill_bytes']} in the table")
        if row["matrix_instructions"] < old["matrix_instructions"]:
            counts = (
                f"{row['matrix_instructions']} matrix instructions, {old['matrix_instructions']} in the table"
            )
            found.append(f"{where} has {counts}")
        if row["shared_bytes"] > row["shared_limit"]:
            limit = (
                f"{row['shared_bytes']} bytes of shared memory, the architecture has {row['shared_limit']}"
            )
            found.append(f"{where} takes {limit}")
    return found


def _key(row: dict[str, Any]) -> tuple[str, str, str]:
    return (row["arch"], row["kernel"], row["specimen"])


def _package(backend: str) -> str:
    from attnbench.backend.registry import BUNDLED, bundled_folder

    if not (Path(bundled_folder()) / backend / "ahead_of_time.py").is_file():
        raise AttnbenchError(f"{backend} does not compile ahead of time; triton does")
    importlib.import_module(BUNDLED)
    return f"{BUNDLED}.{backend}"


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in SHOWN:
        table.add_column(name, justify="right" if name in SHOWN[4:] else "left")
    for row in rows:
        table.add_row(*(str(row[name]) for name in SHOWN))
    out().print(table)
