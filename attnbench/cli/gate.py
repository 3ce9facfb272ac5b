"""`attnbench gate`: did HEAD get worse than BASE? The exit code is the answer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench.cli.console import plural, print_all, print_json, remark, require_writable, texts
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from rich.text import Text

    from attnbench.gate import Gate

MOST_LINES = 50
OF_REVISIONS = ("suite", "everything", "effect", "minutes", "device", "threads", "arch", "record")
OF_FOLDERS = ("margin", "allow_unlike")
STYLES = {
    "inconclusive": "yellow",
    "accepted": "yellow",
    "suspect": "yellow",
    "new": "cyan",
    "faster": "green",
}
EFFECT_TEXT = "The slow-down to find, as a share: 0.05 is 5 %."
MARGIN_TEXT = "Result folders: how much slower is a regression, as a share."
BASE_TEXT = "A git revision whose backends/ are held against, or a result folder."


def gate_change(
    context: typer.Context,
    base: str | None = typer.Option(None, "--base", help=BASE_TEXT, metavar="REV|DIR"),
    head: str | None = typer.Option(
        None,
        "--head",
        help="What is judged; without: the working folder as it is.",
        metavar="REV|DIR",
        show_default=False,
    ),
    suite: str = typer.Option("gate", "--suite", help="The cases, by a suite's name or file."),
    backend: list[str] | None = typer.Option(
        None, "--backend", help="Only these backends (or file.py:function); repeat, or split at commas."
    ),
    everything: bool = typer.Option(
        False, "--all", help="Every backend that is available, not only those whose files changed."
    ),
    effect: float = typer.Option(0.05, "--effect", min=0.01, max=1.0, help=EFFECT_TEXT),
    minutes: float | None = typer.Option(
        None,
        "--minutes",
        min=0.1,
        help="Begin nothing new after this long; 10, and 15 to calibrate, which takes six groups at least.",
    ),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or cuda:N."),
    threads: int = typer.Option(
        1, "--threads", min=1, help="torch threads on a CPU; with 1 it is processor time that counts."
    ),
    arch: str = typer.Option(
        "sm_90", "--arch", help="Kernels that compile without their GPU: the architectures to compile for."
    ),
    margin: float = typer.Option(0.10, "--margin", min=0.0, max=10.0, help=MARGIN_TEXT),
    allow_unlike: bool = typer.Option(
        False, "--allow-unlike", help="Result folders: gate although machines or libraries differ."
    ),
    accepted: Path | None = typer.Option(
        None,
        "--accepted",
        help="Regressions that were accepted; without: accepted-regressions.toml, if there.",
    ),
    strict: bool = typer.Option(False, "--strict", help="Fail on inconclusive cases too."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
    summary: Path | None = typer.Option(
        None, "--summary", help="Write the verdict as GitHub's Markdown to this file.", metavar="FILE"
    ),
    junit: Path | None = typer.Option(
        None, "--junit", help="Write the verdict as JUnit XML to this file.", metavar="FILE"
    ),
    annotations: bool = typer.Option(False, "--annotations", help="Print GitHub's annotations too."),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Measure what a gate can find on this machine, in place of gating."
    ),
    record: Path | None = typer.Option(
        None, "--record", help="Keep the raw rounds in this Parquet file.", metavar="FILE"
    ),
) -> None:
    """Fail (exit 1) where HEAD is wrong, lacks a case, takes more memory or is surely slower than BASE.

    With revisions, the backends of both are loaded from worktrees of the git repository in the current folder, under
    one harness, and timed in interleaved rounds of fresh processes; a suspected slow-down is confirmed in further
    ones before it fails. Result folders come from separate runs: there speed fails only where each holds at least
    four processes (attnbench run --processes 4).

    Exit codes: 0 fine, 1 worse, 2 used wrongly, 3 not comparable or (--calibrate) a machine unfit to gate.

    Example: [bold]attnbench gate --base main[/bold]

    Example: [bold]attnbench gate --base runs/main --head runs/change --margin 0.15[/bold]
    """
    from datetime import date

    from attnbench.cli.calibrate import calibrate_machine
    from attnbench.cli.revisions import Asked, gate_revisions
    from attnbench.gate import accepting, read_accepted
    from attnbench.report.gate import gate_annotations

    longest = minutes or (15.0 if calibrate else 10.0)
    asked = Asked(suite, texts(backend), everything, effect, longest, device, threads, record, arch)
    if calibrate:
        if base or head:
            raise AttnbenchError("--calibrate gates nothing; leave --base and --head out")
        require_writable(record)
        calibrate_machine(asked, as_json)
        return
    if base is None:
        raise AttnbenchError("--base is missing; give a revision such as main, or a result folder")
    require_writable(summary, junit, record)
    _say_what_is_left_aside(context, OF_REVISIONS if Path(base).is_dir() else OF_FOLDERS)
    file = accepted or _default_accepted()
    known = [] if file is None else read_accepted(file)
    if Path(base).is_dir():
        found = _gate_folders(Path(base), head, margin, allow_unlike, asked.backends)
    elif head is not None and Path(head).is_dir():
        raise AttnbenchError(
            f"--head {head} is a folder, so --base must be a result folder too, not {base!r}; "
            f"where a branch has that name, give it as refs/heads/{head}"
        )
    else:
        found = gate_revisions(base, head, asked)
    found = accepting(found, known, date.today())
    if as_json:
        print_json(found.to_json(strict=strict))
    else:
        print_all(_lines(found, strict=strict))
    _write(found, summary, junit, strict=strict)
    if annotations:
        for line in gate_annotations(found, strict=strict):
            typer.echo(line, err=as_json)  # stdout is JSON then; GitHub reads both
    raise typer.Exit(found.exit_code(strict=strict))


def _say_what_is_left_aside(context: typer.Context, names: Sequence[str]) -> None:
    """Name the options that were given and say nothing of what is gated."""
    given = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            given.append(parameter.opts[0])
    if given:
        of = (
            "result folders, which are measured already"
            if names is OF_REVISIONS
            else "revisions; see --effect"
        )
        remark(f"left aside: {', '.join(given)} (nothing to do with {of})")


def _write(found: Gate, summary: Path | None, junit: Path | None, *, strict: bool) -> None:
    from attnbench.report.gate import gate_junit, gate_markdown

    notes = [*(f"unlike, and allowed: {text}" for text in found.unlike), *found.notes]
    for path, text in (
        (summary, lambda: gate_markdown(found, strict=strict, notes=notes)),
        (junit, lambda: gate_junit(found, strict=strict)),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(), encoding="utf-8")


def _default_accepted() -> Path | None:
    from attnbench.gate.accepted import FILE

    return Path(FILE) if Path(FILE).is_file() else None


def _gate_folders(
    base: Path, head: str | None, margin: float, allow_unlike: bool, backends: list[str] | None
) -> Gate:
    from attnbench.gate import gate
    from attnbench.gate.pairing import read_set

    if head is None or not Path(head).is_dir():
        raise AttnbenchError(
            f"--base {base} is a result folder, so --head must be one, not {head or 'left out'}"
        )
    return gate(
        read_set(base), read_set(Path(head)), margin=margin, allow_unlike=allow_unlike, backends=backends
    )


def _lines(found: Gate, *, strict: bool) -> Iterator[Text]:
    from rich.text import Text

    from attnbench.report.cells import clean
    from attnbench.report.gate.order import counted, level_of, word_of, worst_first

    for text in found.unlike:
        yield Text(f"unlike, and allowed: {clean(text)}", style="yellow")
    for text in found.notes:
        yield Text(clean(text), style="bright_black")
    told = [finding for finding in worst_first(found.findings) if level_of(finding) != "nothing"]
    for finding in told[:MOST_LINES]:
        line = Text(f"{finding.kind:<12} ", style=STYLES.get(finding.kind, "bold red"))
        yield line.append(
            f"{clean(finding.backend, 60)} {clean(finding.case)}: {clean(finding.message)}", style="default"
        )
    if len(told) > MOST_LINES:
        yield Text(f"and {len(told) - MOST_LINES} more; --json has all")
    said = counted(found.findings) if found.findings else "nothing to hold against each other"
    failed = found.exit_code(strict=strict) != 0
    yield Text.assemble(
        (f"{word_of(found, strict=strict).lower()}: ", "bold red" if failed else "bold green"),
        f"{said} (a slow-down of {found.margin:.0%} is looked for)",
    )
    if found.inconclusive and not strict:
        yield Text(
            f"warning: {plural(len(found.inconclusive), 'verdict')} inconclusive; add --strict to fail on them",
            style="yellow",
        )
