"""`attnbench compile`: compile a backend's kernels for GPUs that this machine lacks, and compare with the table."""

from __future__ import annotations

from typing import Any

import typer

from attnbench.cli.console import out, print_json, remark

TABLE_COLUMNS = (
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
    check: bool = typer.Option(False, "--check", help="Compare with the committed table; exit 1 if worse."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Compile a backend's kernels ahead of time: registers, spills, shared memory and matrix instructions.

    Example: [bold]attnbench compile triton --arch sm_90 --only bf16-d128-causal[/bold]
    """
    from attnbench.backend.ahead_of_time import compiled_rows
    from attnbench.gate.compiled import against_the_table

    rows = compiled_rows(backend, arch, only)
    if as_json:
        print_json(rows)
    else:
        _show(rows)
    if check and (worse := against_the_table(rows, backend)):
        for line in worse:
            remark(line)
        raise typer.Exit(1)


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in TABLE_COLUMNS:
        table.add_column(name, justify="right" if name in TABLE_COLUMNS[4:] else "left")
    for row in rows:
        table.add_row(*(str(row[name]) for name in TABLE_COLUMNS))
    out().print(table)
