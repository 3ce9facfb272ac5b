"""`attnbench tune`: find the fastest configuration of a backend's kernels on this GPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import typer

from attnbench.errors import AttnbenchError


def tune_kernels(
    backend: str = typer.Argument("triton", help="A backend whose kernels can be tuned."),
    to: Path | None = typer.Option(
        None, "--out", "-o", help="Also write configurations.json to this folder."
    ),
) -> None:
    """Measure configurations on this GPU and keep the fastest right ones. Takes minutes and needs a GPU.

    Example: [bold]attnbench tune triton[/bold]
    """
    from attnbench.backend.sources import BACKENDS_PACKAGE, bundled_folder

    if not (bundled_folder() / backend / "tune.py").is_file():
        raise AttnbenchError(f"{backend} has nothing to tune; triton has")
    command = [
        sys.executable,
        "-m",
        f"{BACKENDS_PACKAGE}.{backend}.tune",
        *(["--out", str(to)] if to else []),
    ]
    raise typer.Exit(subprocess.run(command, check=False).returncode)
