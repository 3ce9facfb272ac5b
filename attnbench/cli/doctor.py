"""`attnbench doctor`: print what is installed, what is missing, and what to do."""

from __future__ import annotations

import typer

from attnbench.cli.console import out, plural, print_json

STATES = {
    "fine": ("ok", "green"),
    "note": ("note", "cyan"),
    "warning": ("warning", "yellow"),
    "bad": ("bad", "bold red"),
}


def examine_machine(
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Examine this machine: what is missing, what that costs, and what to do. Changes nothing.

    Exit code 3 if attnbench cannot work here at all.

    Example: [bold]attnbench doctor --json[/bold]
    """
    from attnbench.cli.symptoms import examine

    symptoms = list(examine())
    bad = any(symptom.state == "bad" for symptom in symptoms)
    if as_json:
        print_json([vars(symptom) for symptom in symptoms])
        raise typer.Exit(3 if bad else 0)

    from rich.table import Table
    from rich.text import Text

    from attnbench.report.cells import clean

    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    for symptom in symptoms:
        word, style = STATES[symptom.state]
        text = Text(clean(symptom.found))
        if symptom.do:
            text.append(
                f"\n-> {clean(symptom.do)}",
                style="bold" if symptom.state in ("warning", "bad") else "bright_black",
            )
        table.add_row(Text(word, style=style), Text(clean(symptom.name, 60)), text)
    console = out()
    console.print(table)
    warnings = sum(symptom.state == "warning" for symptom in symptoms)
    verdict = "attnbench cannot work here" if bad else f"attnbench works here; {plural(warnings, 'warning')}"
    console.print(Text(f"\n{verdict}", style="bold red" if bad else "bold"))
    raise typer.Exit(3 if bad else 0)
