"""The commands, and how an error ends: one line on stderr and an exit code, never a traceback."""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from attnbench.cli import (
    cache,
    check,
    compare,
    compile,
    doctor,
    env,
    gate,
    profile,
    report,
    run_options,
    selftest,
    show,
    tune,
)
from attnbench.cli import list as list_command
from attnbench.cli.console import complain
from attnbench.errors import AttnbenchError, BackendUnavailable, NotComparable

USED_WRONGLY, UNFIT, INTERRUPTED = 2, 3, 130
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


class Program(TyperGroup):
    """Turns an error that attnbench raises on purpose into one red line and its exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except AttnbenchError as error:
            complain(str(error))
            unfit = isinstance(error, (NotComparable, BackendUnavailable))
            raise typer.Exit(UNFIT if unfit else USED_WRONGLY) from error
        except OSError as error:
            # A user's file: no permission, or a full disk (which names no file). Anything else is our bug.
            if error.filename is None and error.errno not in DISK_FULL:
                raise
            where = f"{error.filename}: " if error.filename else ""
            complain(f"{where}{error.strerror}; give another path, or fix it")
            raise typer.Exit(USED_WRONGLY) from error
        except KeyboardInterrupt as error:
            complain("interrupted")
            raise typer.Exit(INTERRUPTED) from error


class Command(TyperCommand):
    """Names the values of lists in a word, so that the help texts have room in 80 columns."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        for option in self.params:
            if getattr(option, "multiple", False) and option.metavar is None:
                option.metavar = "LIST"


app = typer.Typer(
    cls=Program,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Is an attention backend right, how fast, how big, and did a change make it worse?",
    epilog="Start with [bold]attnbench run quick[/bold], or [bold]attnbench doctor[/bold] if something is missing.",
)
for panel, name, command in (
    ("Right, fast, big", "run", run_options.run_suite),
    ("Right, fast, big", "check", check.check_backend),
    ("Right, fast, big", "report", report.report_results),
    ("Right, fast, big", "show", show.show_case),
    ("Worse", "compare", compare.compare_results),
    ("Worse", "gate", gate.gate_change),
    ("What is here", "list", list_command.list_what_there_is),
    ("What is here", "doctor", doctor.examine_machine),
    ("What is here", "cache", cache.show_or_clear_cache),
    ("Kernels", "profile", profile.profile_one_case),
    ("Kernels", "compile", compile.compile_kernels),
    ("Kernels", "tune", tune.tune_kernels),
    ("The judge", "selftest", selftest.judge_the_judge),
):
    app.command(name, cls=Command, rich_help_panel=panel)(command)
app.add_typer(env.app, name="env", rich_help_panel="What is here")


@app.callback(invoke_without_command=True)
def _version(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    if version:
        from attnbench import __version__

        typer.echo(f"attnbench {__version__}")
        raise typer.Exit()
