"""`attnbench check`: hold a backend to the float64 oracle, on problems chosen from what it declares."""

from __future__ import annotations

import json
import shlex
from typing import TYPE_CHECKING, Any

import typer

from attnbench.cli.console import out, print_json, remark, texts
from attnbench.errors import AttnbenchError, CaseError
from attnbench.waiting import sleep_soon

if TYPE_CHECKING:
    from attnbench.conformance.report import Report
    from attnbench.problem import Case

FINE, WRONG, TOO_LITTLE = 0, 1, 3  # exit codes


def check_backend(
    backend: str = typer.Argument(..., help="A backend's name, or path/to/file.py:function."),
    level: str = typer.Option("standard", "--level", help="smoke, standard or exhaustive."),
    device: str = typer.Option("auto", "--device", help="auto (cuda if present), cpu, cuda or cuda:N."),
    seed: int = typer.Option(0, "--seed", min=0, help="The seed of the inputs."),
    mask: list[str] | None = typer.Option(
        None, "--mask", help="Only these masks; repeat, or split at commas."
    ),
    dtype: list[str] | None = typer.Option(None, "--dtype", help="Only these dtypes: fp32, bf16, fp16."),
    direction: list[str] | None = typer.Option(None, "--direction", help="Only these: fwd, fwd_bwd."),
    where: str | None = typer.Option(
        None,
        "--where",
        help='Only cases that meet a condition, such as "q_len == 1 and k_len % 128 == 0".',
    ),
    contract: str | None = typer.Option(
        None, "--contract", help="Judge by flash, flash_splits or dense, not by what the backend declares."
    ),
    declare: str | None = typer.Option(
        None,
        "--declare",
        help="What a plain function promises: contract=dense,empty_rows=mean_v,gqa=no,lengths=equal,backward=no.",
    ),
    only: list[str] | None = typer.Option(
        None, "--only", help="Only these checks: oracle, protocol, claims, or a property or claim by name."
    ),
    case: str | None = typer.Option(
        None, "--case", help="Only this case, as JSON (a failure prints the whole command)."
    ),
    distribution: str = typer.Option(
        "randn", "--distribution", help="With --case: the distribution of the inputs."
    ),
    repeats: int = typer.Option(
        20, "--repeats", min=1, help="Calls of one case to see whether its bits are the same in each."
    ),
    strict: bool = typer.Option(
        False,
        "--strict",
        help="Exit 1 if limits are suspected or a known defect is undeclared, too.",
    ),
    watch: bool = typer.Option(
        False,
        "--watch",
        help="Check again whenever a Python file beside the backend's is saved, until Ctrl-C.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Check that a backend computes exact attention, forward and backward, for all it claims.

    Exit 0 if right, 1 if wrong, 3 if too little is checked to say so.

    Example: [bold]attnbench check mine.py:attention --mask causal --dtype fp32[/bold]
    """
    sleep_soon()
    if case is None and distribution != "randn":
        raise AttnbenchError("--distribution needs --case; add it or drop --distribution")
    one = None if case is None else case_of(case)
    options: dict[str, Any] = {"masks": texts(mask), "dtypes": texts(dtype), "directions": texts(direction)}
    options |= {"only": texts(only), "where": where, "contract": contract, "declare": declare}
    options |= {"repeats": repeats}
    options |= {"case": one, "distribution": distribution}

    def checked() -> int:
        from attnbench.conformance import check
        from attnbench.device import resolve_device

        here = resolve_device(device)
        remark(f"device {here}: checking {backend}, {f'level {level}' if one is None else one.id}")
        report = check(backend, level=level, device=here, seed=seed, **options)
        if as_json:
            print_json(report.to_json())
        else:
            out().print(str(report), markup=False, soft_wrap=True)  # a command cut in two cannot be pasted
            show = show_command(report.failures[0].command) if report.failures else ""
            if show:
                out().print(f"\nto see where: {show}", markup=False, soft_wrap=True)
        return exit_code(report, strict)

    if watch:
        from attnbench.cli.watch import watch_backend

        watch_backend(backend, device, checked)
    raise typer.Exit(checked())


def exit_code(report: Report, strict: bool = False) -> int:
    """0 if right, 1 if wrong (when `strict`: or limits are suspected, or a defect undeclared), 3 if too little."""
    from attnbench.conformance.report import RIGHT, VERDICT_WRONG

    if report.verdict == VERDICT_WRONG or (strict and (report.limits or report.undeclared)):
        return WRONG
    return FINE if report.verdict == RIGHT else TOO_LITTLE


def case_of(text: str) -> Case:
    """The case that a JSON object describes; CaseError if it describes none."""
    from attnbench.problem import Case

    try:
        record = json.loads(text)
    except ValueError as error:
        raise CaseError(
            f"the case is not JSON ({error}); quote it whole, as the failure prints it"
        ) from error
    if not isinstance(record, dict):
        raise CaseError(f"a case is a JSON object with the fields of a case, not {text[:40]!r}")
    return Case.from_json(record)


def show_command(check_command: str) -> str:
    """The `attnbench show` command for the `attnbench check` command of a failure; empty if it has no picture."""
    words = shlex.split(check_command)
    if words[:2] != ["attnbench", "check"] or "--case" not in words or "--only" in words:
        return ""  # a picture shows values on one case, not how they came about
    place = words.index("--case")
    backend, case, rest = words[2], words[place + 1], words[place + 2 :]
    return shlex.join(["attnbench", "show", case, "--backend", backend, *rest, "--out", "pictures"])
