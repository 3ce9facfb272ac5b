"""`attnbench list`: the backends with their capabilities or what they need, the suites, the masks."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Any

import typer

from attnbench.cli.console import print_all, print_json

if TYPE_CHECKING:
    from rich.table import Table


class What(Enum):
    """What can be listed."""

    BACKENDS = "backends"
    SUITES = "suites"
    MASKS = "masks"


def list_what_there_is(
    what: What = typer.Argument(What.BACKENDS, help="What to list.", metavar="[backends|suites|masks]"),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """List the backends (bundled and third-party), the suites, or the masks.

    Example: [bold]attnbench list --json | jq '.[] | select(.available) | .name'[/bold]
    """
    if what is not What.BACKENDS:
        named = suites() if what is What.SUITES else masks()
        if as_json:
            print_json([{"name": name, "description": text} for name, text in named.items()])
        else:
            print_all([_names(what.value[:-1], named)])
        return
    from attnbench.report.backends import backend_table
    from attnbench.session import backends

    rows = backends().to_dict("records")
    if as_json:
        print_json([_record(row) for row in rows])
    else:
        print_all(backend_table(rows))


def suites() -> dict[str, str]:
    """The bundled suites and the purpose of each."""
    from attnbench.sweep.suite import list_suites

    return list_suites()


def masks() -> dict[str, str]:
    """The text of each kind of mask, and which keys a query may attend; i, j: query, key; p: i + k_len - q_len."""
    from attnbench.problem.grammar import LEAVES

    named = {leaf.takes: (leaf.__doc__ or "").splitlines()[0].replace("`", "") for leaf in LEAVES.values()}
    return {**named, "a & b, a | b, ~a": "And, or, not, with brackets; ~ binds before &, and & before |."}


def _names(kind: str, named: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(kind, overflow="fold")
    table.add_column("description")
    for name, text in named.items():
        table.add_row(Text(name), Text(text))
    return table


def _record(row: dict[Any, Any]) -> dict[str, Any]:
    """One backend as JSON values."""
    can = row["capabilities"]
    capabilities: dict[str, Any] = {}
    if can is not None:
        capabilities = {name: sorted(v) if isinstance(v, frozenset) else v for name, v in vars(can).items()}
    version = row["version"] if isinstance(row["version"], str) else ""
    return {
        "name": row["name"],
        "available": bool(row["available"]),
        "reason": row["reason"],
        "install": row["install"],
        "version": version,
        "source": str(row["source"]),
        "takes": {device: vars(taken) for device, taken in row["takes"].items()},
        "capabilities": capabilities,
    }
