"""`attnbench gate`: did HEAD get worse than BASE? The exit code is the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench.cli.compare import read_set
from attnbench.cli.console import plural, print_all, print_json, texts

if TYPE_CHECKING:
    from rich.text import Text

    from attnbench.gate import Gate

MARGIN_TEXT = "How much slower is a regression, as a share: 0.1 is 10 %."
MOST_LINES = 50
STYLES = {"inconclusive": "yellow", "new": "cyan", "faster": "green"}


def gate_results(
    base: Path = typer.Option(..., "--base", help="The result set to hold against.", metavar="DIR"),
    head: Path = typer.Option(..., "--head", help="The result set that is judged.", metavar="DIR"),
    margin: float = typer.Option(0.10, "--margin", min=0.0, max=10.0, help=MARGIN_TEXT),
    backend: list[str] | None = typer.Option(
        None, "--backend", help="Only these backends; repeat, or split at commas."
    ),
    allow_unlike: bool = typer.Option(
        False, "--allow-unlike", help="Gate although machines or libraries differ."
    ),
    strict: bool = typer.Option(False, "--strict", help="Fail on inconclusive cases too."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Fail (exit 1) where HEAD is wrong, lacks a case, takes more memory or is surely slower than BASE.

    Memory fails above 1.01 times base and 2 MiB. Time fails where the ratio of medians exceeds the margin and its
    95 % interval leaves 1 out. The two sets come from separate runs: repeat a failure before believing a small one.
    Exit codes: 0 fine, 1 worse, 2 used wrongly, 3 not comparable.

    Example: [bold]attnbench gate --base runs/main --head runs/change --margin 0.15[/bold]
    """
    from attnbench.gate import gate

    found = gate(
        read_set(base), read_set(head), margin=margin, allow_unlike=allow_unlike, backends=texts(backend)
    )
    if as_json:
        print_json(found.to_json(strict=strict))
    else:
        print_all(_lines(found, strict=strict))
    raise typer.Exit(found.exit_code(strict=strict))


def _lines(found: Gate, *, strict: bool) -> Iterator[Text]:
    from rich.text import Text

    from attnbench.gate import FAILING, KINDS
    from attnbench.report.text import clean

    for text in found.unlike:
        yield Text(f"unlike, and allowed: {clean(text)}", style="yellow")
    told = [f for f in found.findings if f.kind in FAILING or f.kind in STYLES]
    for finding in told[:MOST_LINES]:
        style = STYLES.get(finding.kind, "bold red")
        line = Text(f"{finding.kind:<12} ", style=style)
        yield line.append(
            f"{clean(finding.backend, 60)} {clean(finding.case)}: {clean(finding.message)}", style="default"
        )
    if len(told) > MOST_LINES:
        yield Text(f"and {len(told) - MOST_LINES} more; --json has all")
    counts = ", ".join(f"{found.count(kind)} {kind}" for kind in KINDS if found.count(kind))
    failed = found.exit_code(strict=strict) != 0
    word = (
        "worse" if failed else "not worse" if not found.inconclusive else "not worse as far as it can be told"
    )
    rule = f"margin {found.margin:.0%} on the ratio of medians"
    yield Text.assemble((f"{word}: ", "bold red" if failed else "bold green"), f"{counts} ({rule})")
    if found.inconclusive and not strict:
        yield Text(
            f"warning: {plural(len(found.inconclusive), 'case')} inconclusive; run both with more --rounds, "
            "or add --strict to fail on them",
            style="yellow",
        )
