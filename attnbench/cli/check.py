"""`attnbench check`: hold a backend to the float64 oracle, on problems chosen from what it declares."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import typer

from attnbench.cli.check_line import CheckLine
from attnbench.cli.console import out, print_json, remark, require_backend, say_once, texts
from attnbench.errors import SIGNALLED, AttnbenchError, BackendUnavailable, CaseError
from attnbench.waiting import sleep_soon

if TYPE_CHECKING:
    from attnbench.problem import Case

FINE, WRONG, TOO_LITTLE, INTERRUPTED = 0, 1, 3, 130  # exit codes
MOST_PRINTED = 10  # lines of warnings and of what the backend printed


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
    timeout: float = typer.Option(
        300.0, "--timeout", min=0.1, help="Seconds per call of the backend; a longer one counts as crashed."
    ),
    time_limit: float | None = typer.Option(
        None, "--time-limit", min=0.0, help="Seconds for the whole check; then it tells what it found so far."
    ),
    in_process: bool = typer.Option(
        False,
        "--in-process",
        help="Call the backend in this process, for a debugger or a profiler; a crash or a hang ends the check.",
    ),
    verbose: bool = typer.Option(
        False, "-v", "--verbose", help="Print every cause, failure and value tried."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Check that a backend computes exact attention, forward and backward, for all it claims.

    Exit 0 if right, 1 if wrong, 3 if too little is checked to say so (also at the time limit), 130 after Ctrl-C or
    SIGTERM: the report then has what was found so far.

    Example: [bold]attnbench check mine.py:attention --mask causal --dtype fp32[/bold]
    """
    sleep_soon()
    if case is None and distribution != "randn":
        raise AttnbenchError("--distribution needs --case; add it or drop --distribution")
    if case is not None and where is not None:
        raise AttnbenchError("--where chooses cases; drop it, or --case")
    require_backend(backend)
    one = None if case is None else case_of(case)
    options: dict[str, Any] = {"masks": texts(mask), "dtypes": texts(dtype), "directions": texts(direction)}
    options |= {"level": level, "seed": seed, "where": where, "contract": contract, "only": texts(only)}
    options |= {"repeats": repeats, "declare": declare}
    fields: dict[str, Any] = {"case": None if one is None else one.to_json(), "distribution": distribution}
    fields |= {"only_some": only is not None, "verbose": verbose}

    def checked() -> int:
        remark(f"checking {backend}, {f'level {level}' if one is None else one.id}")
        with CheckLine() as line:
            if in_process or watch:  # each check of a watch has a process of its own
                answer, printed = _check_here(device, backend, options, fields, time_limit, line.show), []
            else:
                from attnbench.cli.check_process import CheckProcess

                process = CheckProcess(device, timeout, line.show)
                answer = process.check({"backend": backend, "options": options}, fields, time_limit)
                printed = [*answer["warnings"], *process.printed]
        if as_json:
            print_json(json.loads(answer["json"]))
        else:
            out().print(answer["text"], markup=False, soft_wrap=True)  # a command cut in two cannot be pasted
            show = show_command(answer["command"])
            if show:
                out().print(f"  show   {show}", markup=False, soft_wrap=True)
        say_once(printed, len(printed) if verbose else MOST_PRINTED)
        return exit_code(answer, strict)

    if watch:
        from attnbench.cli.watch import watch_backend

        watch_backend(backend, device, checked)
    raise typer.Exit(checked())


def _check_here(
    device: str,
    backend: str,
    options: dict[str, Any],
    fields: dict[str, Any],
    time_limit_s: float | None,
    on_next: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """The answer of the check in this process; what the backend prints appears as it comes."""
    from attnbench.cli.check_worker import CheckBench

    bench = CheckBench(device, lambda phase: on_next(phase["next"]) if "next" in phase else None)
    answer = bench.load(backend, options, quietly=False)
    if not answer:
        answer = bench.check(**fields, time_limit_s=time_limit_s, done={}, crashed={}, stopped="")
    if "unavailable" in answer:
        raise BackendUnavailable(answer["unavailable"])
    if "refused" in answer:
        raise AttnbenchError(answer["refused"])
    return answer


def exit_code(answer: dict[str, Any], strict: bool = False) -> int:
    """0 right, 1 wrong (`strict`: or limits suspected, a defect undeclared), 3 too little checked, 130 interrupted."""
    if answer["stopped"] == SIGNALLED:
        return INTERRUPTED
    if answer["verdict"] == "wrong" or (strict and (answer["limits"] or answer["undeclared"])):
        return WRONG
    return FINE if answer["verdict"] == "right" else TOO_LITTLE


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
    variables = list(takewhile(lambda word: re.match(r"[A-Z_0-9]+=", word), words))
    words = words[len(variables) :]
    if words[:2] != ["attnbench", "check"] or "--case" not in words or "--only" in words:
        return ""  # a picture shows values on one case, not how they came about
    place = words.index("--case")
    backend, case, rest = words[2], words[place + 1], words[place + 2 :]
    environment = [f"{name}={shlex.quote(value)}" for name, _, value in (v.partition("=") for v in variables)]
    command = shlex.join(["attnbench", "show", case, "--backend", backend, *rest, "--out", "pictures"])
    return " ".join([*environment, command])
