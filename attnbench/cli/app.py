"""Which commands are there, and how does a mistake end? One line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from attnbench.cli import (
    check,
    compare,
    compile,
    doctor,
    env,
    gate,
    profile,
    report,
    run,
    selftest,
    show,
    tune,
)
from attnbench.cli import list as list_command
from attnbench.cli.console import complain
from attnbench.errors import AttnbenchError, BackendUnavailable, NotComparable

USED_WRONGLY, UNFIT, INTERRUPTED = 2, 3, 130
FULL = (errno.ENOSPC, errno.EDQUOT)


class Program(TyperGroup):
    """Turns what attnbench raises on purpose into one red line and the exit code of its kind."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AttnbenchError as problem:
            complain(str(problem))
            unfit = isinstance(problem, (NotComparable, BackendUnavailable))
            raise typer.Exit(UNFIT if unfit else USED_WRONGLY) from problem
        except OSError as problem:
            # A file of the person's: no permission, a full disk (which names no file). Else the mistake is our own.
            if problem.filename is None and problem.errno not in FULL:
                raise
            where = f"{problem.filename}: " if problem.filename else ""
            complain(f"{where}{problem.strerror}; give another path, or put that right")
            raise typer.Exit(USED_WRONGLY) from problem
        except KeyboardInterrupt as problem:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from problem


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Is an attention backend right, how fast, how big, and did a change make it worse?",
    epilog="Start with [bold]attnbench run quick[/bold], or [bold]attnbench doctor[/bold] where something is missing.",
)
for name, command in (
    ("list", list_command.list_what_there_is),
    ("check", check.check_backend),
    ("run", run.run_suite),
    ("report", report.report_results),
    ("compare", compare.compare_results),
    ("gate", gate.gate_change),
    ("doctor", doctor.examine_machine),
    ("selftest", selftest.judge_the_judge),
    ("show", show.show_case),
    ("profile", profile.profile_one_case),
    ("compile", compile.compile_kernels),
    ("tune", tune.tune_kernels),
):
    app.command(name)(command)
app.add_typer(env.app, name="env")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Say the version and end.", is_eager=True),
) -> None:
    if version:
        from attnbench import __version__

        typer.echo(f"attnbench {__version__}")
        raise typer.Exit()
