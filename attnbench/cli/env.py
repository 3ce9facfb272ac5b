"""`attnbench env`: create, list and remove the Python environments of backends."""

from __future__ import annotations

import sys
from typing import Any

import typer

from attnbench.cli.console import out, print_json, remark

app = typer.Typer(
    no_args_is_help=True,
    help="Python environments of backends whose libraries cannot be installed together.",
)


@app.command("create")
def create_environments(
    names: list[str] = typer.Argument(..., help="jax, xformers, flash_attn, ... (attnbench env list)."),
    cuda: bool = typer.Option(False, "--cuda", help="Install the CUDA part of the lock, if it has one."),
    python: str = typer.Option(
        sys.executable, "--python", help="The base interpreter (default: this one).", show_default=False
    ),
) -> None:
    """Create environments from locked versions. A ready one is left unchanged.

    Example: [bold]attnbench env create jax[/bold]
    """
    from attnbench.backend import environments

    for name in names:
        environments.create(name, cuda=cuda, python=python, say=remark)


@app.command("list")
def list_environments(
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """List the environments: state, Python, folder and size on disk.

    Example: [bold]attnbench env list[/bold]
    """
    from attnbench.backend import environments

    rows = [_row(environment) for environment in environments.every()]
    if as_json:
        print_json(rows)
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("environment", "state", "python", "size", "folder, or how to create it"):
        table.add_column(name)
    for row in rows:
        size = f"{row['size_bytes'] / (1 << 20):.0f} MiB" if row["size_bytes"] else ""
        state = row["state"] + (", cuda" if row["cuda"] else "")
        table.add_row(row["name"], state, row["python_version"], size, row["python"] or row["create"])
    out().print(table)


@app.command("remove")
def remove_environments(names: list[str] = typer.Argument(..., help="The environments to remove.")) -> None:
    """Remove environments from the disk.

    Example: [bold]attnbench env remove jax[/bold]
    """
    from attnbench.backend import environments

    for name in names:
        remark(f"removed {name}" if environments.remove(name) else f"{name} does not exist")


def _row(environment: Any) -> dict[str, Any]:
    from attnbench.backend import environments

    usable = environment.usable
    return {
        "name": environment.name,
        "state": environment.state,
        "python_version": environment.python_version,
        "cuda": environment.cuda,
        "size_bytes": environment.size_bytes,
        "python": str(environment.python) if usable else "",
        "create": ""
        if environment.state in ("ready", "given")
        else environments.how_to_make(environment.name),
    }
