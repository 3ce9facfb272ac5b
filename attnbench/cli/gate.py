"""`attnbench gate`: fail if HEAD is worse than BASE; the exit code is the answer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench.cli.console import plural, print_all, print_json, remark, require_writable, texts
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from rich.text import Text

    from attnbench.gate import Gate
    from attnbench.gate.options import GateOptions

MOST_LINES = 50
FOR_REVISIONS = ("suite", "everything", "effect", "minutes", "device", "threads", "arch", "record")
FOR_FOLDERS = ("margin", "allow_unlike")
STYLES = {
    "inconclusive": "yellow",
    "accepted": "yellow",
    "suspect": "yellow",
    "new": "cyan",
    "faster": "green",
}
EFFECT_TEXT = "The slow-down to find, as a share: 0.05 is 5 %."
MARGIN_TEXT = "Result folders: the slow-down that is a regression, as a share."
BASE_TEXT = "What to compare with: a git revision, or a result folder."


def gate_change(
    context: typer.Context,
    base: str | None = typer.Option(None, "--base", help=BASE_TEXT, metavar="REV|DIR"),
    head: str | None = typer.Option(
        None,
        "--head",
        help="What is judged (default: the working folder as it is).",
        metavar="REV|DIR",
        show_default=False,
    ),
    suite: str = typer.Option("gate", "--suite", help="The suite of cases: a name or a file."),
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
        help="Start nothing new after this long (default: 10; with --calibrate 15).",
    ),
    device: str = typer.Option("auto", "--device", help="auto, cpu, cuda or cuda:N."),
    threads: int = typer.Option(
        1, "--threads", min=1, help="torch threads on a CPU; 1 measures processor time."
    ),
    arch: str = typer.Option(
        "sm_90", "--arch", help="The architectures for which to compile kernels without their GPU."
    ),
    margin: float = typer.Option(0.10, "--margin", min=0.0, max=10.0, help=MARGIN_TEXT),
    allow_unlike: bool = typer.Option(
        False, "--allow-unlike", help="Result folders: gate even if machines or libraries differ."
    ),
    accepted: Path | None = typer.Option(
        None,
        "--accepted",
        help="The file of accepted regressions (default: accepted-regressions.toml, if it exists).",
    ),
    strict: bool = typer.Option(False, "--strict", help="Fail on inconclusive cases too."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
    summary: Path | None = typer.Option(
        None, "--summary", help="Write the verdict to this file as GitHub's Markdown.", metavar="FILE"
    ),
    junit: Path | None = typer.Option(
        None, "--junit", help="Write the verdict to this file as JUnit XML.", metavar="FILE"
    ),
    annotations: bool = typer.Option(False, "--annotations", help="Print GitHub's annotations too."),
    calibrate: bool = typer.Option(
        False, "--calibrate", help="Measure what a gate can find on this machine, instead of gating."
    ),
    record: Path | None = typer.Option(
        None, "--record", help="Keep the raw rounds in this Parquet file.", metavar="FILE"
    ),
) -> None:
    """Fail (exit 1) if HEAD is wrong, lacks a case, takes more memory or is surely slower than BASE.

    With revisions, the backends of both are loaded from worktrees of the git repository in the current folder, under
    one harness, and timed in interleaved rounds of fresh processes; a suspected slow-down fails only after further
    processes confirm it. Result folders come from separate runs: there speed fails only if each folder holds at
    least four processes (attnbench run --processes 4).

    Exit codes: 0 fine, 1 worse, 2 used wrongly, 3 not comparable or (--calibrate) a machine unfit to gate.

    Example: [bold]attnbench gate --base main[/bold]

    Example: [bold]attnbench gate --base runs/main --head runs/change --margin 0.15[/bold]
    """
    from datetime import date

    from attnbench.cli.calibrate import print_calibration
    from attnbench.gate import accepting, read_accepted
    from attnbench.gate.options import GateOptions
    from attnbench.report.gate import gate_annotations

    options = GateOptions(
        suite=suite,
        backends=texts(backend),
        everything=everything,
        effect=effect,
        minutes=minutes or (15.0 if calibrate else 10.0),
        device=device,
        threads=threads,
        record=record,
        arch=arch,
    )
    if calibrate:
        if base or head:
            raise AttnbenchError("--calibrate gates nothing; drop --base and --head")
        require_writable(record)
        print_calibration(options, as_json)
        return
    if base is None:
        raise AttnbenchError("--base is missing; give a revision such as main, or a result folder")
    require_writable(summary, junit, record)
    _name_ignored_options(context, is_folder=Path(base).is_dir())
    file = accepted or _default_accepted()
    entries = [] if file is None else read_accepted(file)
    verdict = _verdict(base, head, options, margin, allow_unlike)
    verdict = accepting(verdict, entries, date.today())
    if as_json:
        print_json(verdict.to_json(strict=strict))
    else:
        print_all(_lines(verdict, strict=strict))
    _write(verdict, summary, junit, strict=strict)
    if annotations:
        for line in gate_annotations(verdict, strict=strict):
            typer.echo(line, err=as_json)  # stdout is JSON then; GitHub reads both
    raise typer.Exit(verdict.exit_code(strict=strict))


def _name_ignored_options(context: typer.Context, *, is_folder: bool) -> None:
    """Name the options on the command line that do not apply to what is gated."""
    names = FOR_REVISIONS if is_folder else FOR_FOLDERS
    ignored = []
    for parameter in context.command.params:
        source = context.get_parameter_source(parameter.name or "")
        if parameter.name in names and source is not None and source.name == "COMMANDLINE":
            ignored.append(parameter.opts[0])
    if ignored and is_folder:
        remark(f"ignored: {', '.join(ignored)} (for revisions only; result folders are measured already)")
    elif ignored:
        remark(f"ignored: {', '.join(ignored)} (for result folders only; revisions take --effect)")


def _verdict(base: str, head: str | None, options: GateOptions, margin: float, allow_unlike: bool) -> Gate:
    from attnbench.gate import gate
    from attnbench.gate.pairing import read_set

    head_is_folder = head is not None and Path(head).is_dir()
    if Path(base).is_dir():
        if head is None or not head_is_folder:
            raise AttnbenchError(
                f"--base {base} is a result folder, so --head must be one too, not {head or 'missing'}"
            )
        sets = read_set(Path(base)), read_set(Path(head))
        return gate(*sets, margin=margin, allow_unlike=allow_unlike, backends=options.backends)
    if head_is_folder:
        raise AttnbenchError(
            f"--head {head} is a folder, so --base must be a result folder too, not {base!r}; "
            f"if a branch has that name, give it as refs/heads/{head}"
        )
    from attnbench.gate.revisions import gate_revisions

    return gate_revisions(base, head, options, remark)


def _write(verdict: Gate, summary: Path | None, junit: Path | None, *, strict: bool) -> None:
    from attnbench.report.gate import gate_junit, gate_markdown

    notes = [*(f"unlike, and allowed: {text}" for text in verdict.unlike), *verdict.notes]
    for path, text in (
        (summary, lambda: gate_markdown(verdict, strict=strict, notes=notes)),
        (junit, lambda: gate_junit(verdict, strict=strict)),
    ):
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text(), encoding="utf-8")


def _default_accepted() -> Path | None:
    from attnbench.gate.accepted import ACCEPTED_FILE

    return Path(ACCEPTED_FILE) if Path(ACCEPTED_FILE).is_file() else None


def _lines(verdict: Gate, *, strict: bool) -> Iterator[Text]:
    from rich.text import Text

    from attnbench.report.cells import clean
    from attnbench.report.gate.order import counted, level_of, word_of, worst_first

    for text in verdict.unlike:
        yield Text(f"unlike, and allowed: {clean(text)}", style="yellow")
    for text in verdict.notes:
        yield Text(clean(text), style="bright_black")
    shown = [finding for finding in worst_first(verdict.findings) if level_of(finding) != "nothing"]
    for finding in shown[:MOST_LINES]:
        line = Text(f"{finding.kind:<12} ", style=STYLES.get(finding.kind, "bold red"))
        yield line.append(
            f"{clean(finding.backend, 60)} {clean(finding.case)}: {clean(finding.message)}", style="default"
        )
    if len(shown) > MOST_LINES:
        yield Text(f"and {len(shown) - MOST_LINES} more; --json has all")
    counts = counted(verdict.findings) if verdict.findings else "nothing to compare"
    failed = verdict.exit_code(strict=strict) != 0
    yield Text.assemble(
        (f"{word_of(verdict, strict=strict).lower()}: ", "bold red" if failed else "bold green"),
        f"{counts} (a slow-down of {verdict.margin:.0%} is looked for)",
    )
    if verdict.inconclusive and not strict:
        yield Text(
            f"warning: {plural(len(verdict.inconclusive), 'verdict')} inconclusive; add --strict to fail on them",
            style="yellow",
        )
