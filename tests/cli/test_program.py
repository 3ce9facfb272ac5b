"""Every command explains itself, and every error ends in one line and its exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from attnbench.cli.app import Program, app
from attnbench.errors import AttnbenchError, BackendUnavailable, NotComparable, StoreError, SuiteError

COMMANDS = ("list", "check", "run", "report", "compare", "gate", "doctor")
FOR_MACHINES = COMMANDS


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = "from attnbench.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_of_a_command_has_an_example_that_names_it(command: str, attnbench: Any) -> None:
    done = attnbench(command, "--help")
    assert done.exit_code == 0
    assert "Example:" in done.stdout
    assert f"attnbench {command}" in done.stdout.split("Example:")[1]


def test_no_help_text_has_square_brackets_which_would_be_read_as_markup() -> None:
    commands: Any = typer.main.get_command(app)
    helps = {
        f"{name} {option.name}": getattr(option, "help", None) or ""
        for name, command in commands.commands.items()
        for option in command.params
    }
    assert [where for where, text in helps.items() if "[" in text] == []


@pytest.mark.parametrize("command", FOR_MACHINES)
def test_a_command_that_a_machine_reads_has_json(command: str, attnbench: Any) -> None:
    assert "--json" in attnbench(command, "--help").stdout


def test_without_a_command_the_help_lists_all(attnbench: Any) -> None:
    shown = attnbench().output
    assert all(command in shown for command in COMMANDS)


def test_the_help_imports_nothing_heavy() -> None:
    program = (
        "import sys\nfrom attnbench.cli import main\nsys.argv = ['attnbench', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name.split(".")[0] for name in done.stderr.split()}
    assert "typer" in loaded
    assert not loaded & {"torch", "pandas", "numpy", "matplotlib", "scipy", "pyarrow", "triton"}


def test_the_version_is_printed(attnbench: Any) -> None:
    from attnbench import __version__

    assert attnbench("--version").stdout == f"attnbench {__version__}\n"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (AttnbenchError("no such thing; try another"), 2),
        (SuiteError("no suite"), 2),
        (StoreError("corrupt"), 2),
        (NotComparable("unlike"), 3),
        (BackendUnavailable("not installed"), 3),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_an_error_is_one_line_and_its_exit_code(error: BaseException, code: int) -> None:
    program = typer.Typer(cls=Program)

    @program.command()
    def one() -> None:
        raise error

    @program.command()
    def two() -> None: ...

    done = CliRunner().invoke(program, ["one"])
    assert done.exit_code == code
    assert done.stderr.startswith("attnbench: ")
    assert done.stderr.count("\n") == 1
    assert str(error) in done.stderr


def test_a_file_that_cannot_be_written_is_named_without_a_traceback(tmp_path: Path) -> None:
    program = typer.Typer(cls=Program)

    @program.command()
    def one() -> None:
        (tmp_path / "no" / "folder.md").write_text("")

    @program.command()
    def two() -> None: ...

    done = CliRunner().invoke(program, ["one"])
    assert done.exit_code == 2
    assert "no/folder.md" in done.stderr
    assert "No such file or directory" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is always full")
def test_a_full_disk_is_reported_without_a_traceback() -> None:
    program = typer.Typer(cls=Program)

    @program.command()
    def one() -> None:
        Path("/dev/full").write_text("a page")

    @program.command()
    def two() -> None: ...

    done = CliRunner().invoke(program, ["one"])
    assert done.exit_code == 2
    assert done.stderr == "attnbench: No space left on device; give another path, or fix it\n"


def test_a_bug_of_our_own_is_not_hidden() -> None:
    program = typer.Typer(cls=Program)

    @program.command()
    def one() -> None:
        raise ZeroDivisionError

    @program.command()
    def two() -> None: ...

    assert isinstance(CliRunner().invoke(program, ["one"]).exception, ZeroDivisionError)


def test_hostile_text_in_an_error_is_inert(attnbench: Any) -> None:
    done = attnbench("report", "/no/\x1b]0;title\x07[bold]folder[/bold]")
    assert done.exit_code == 2
    assert "\x1b" not in done.stderr
    assert "[bold]folder[/bold]" in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("gate",),
        ("gate", "--base", "a", "--head", "b", "--margin", "lots"),
        ("run",),
        ("run", "quik"),
        ("run", "quick", "--mask", "causal"),
        ("run", "--mask", "causl", "--seq", "64"),
        ("run", "--seq", "many"),
        ("run", "--seq", "64", "--case", "no such id"),
        ("run", "--seq", "64", "--memory-limit", "much"),
        ("run", "--seq", "64", "--device", "tpu"),
        ("run", "--seq", "64", "--resume"),
        ("run", "--seq", "64", "--backend", ","),
        ("run", "--seq", "64", "--dtype", "fp8"),
        ("check", "sdap_math"),
        ("report", "/no/such/folder"),
        ("compare", "/no/such/folder", "/none/either"),
    ],
    ids=" ".join,
)
def test_a_wrong_use_exits_2_and_says_so_on_stderr(
    arguments: tuple[str, ...], attnbench: Callable[..., Any]
) -> None:
    done = attnbench(*arguments)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    assert len(done.stderr) > 20


def test_a_near_miss_is_suggested(attnbench: Any) -> None:
    assert "did you mean 'quick'?" in attnbench("run", "quik").stderr
    assert "did you mean 'causal'?" in attnbench("run", "--mask", "causl", "--seq", "64").stderr


def test_the_entry_point_ends_with_the_exit_code() -> None:
    done = call("report", "/no/such/folder")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("attnbench: no results at")
    assert "Traceback" not in done.stderr


def test_doctor_says_what_to_do_about_a_missing_compiler(
    attnbench: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    found = {one["name"]: one for one in json.loads(attnbench("doctor", "--json").stdout)}
    assert found["c++ compiler"]["state"] == "warning"
    assert "FlexAttention" in found["c++ compiler"]["found"]
    assert "g++" in found["c++ compiler"]["do"]
    assert found["torch"]["state"] == "fine"


def test_doctor_names_every_unavailable_backend_with_its_install_command(attnbench: Any) -> None:
    listed = json.loads(attnbench("list", "--json").stdout)
    shown = " ".join(attnbench("doctor").stdout.split())
    missing = [one for one in listed if not one["available"]]
    assert missing
    for one in missing:
        assert one["name"] in shown
        assert one["install"][:40] in shown


@pytest.mark.parametrize("command", [("list",), ("doctor",), ("--help",), ("run", "--help")], ids=" ".join)
def test_what_a_terminal_shows_fits_80_columns_and_is_plain_in_a_pipe(command: tuple[str, ...]) -> None:
    width = (
        "import sys\n"
        "from attnbench.cli import console\nfrom rich.console import Console\n"
        "console.out = lambda: Console(highlight=False, width=80, force_terminal=False)\n"
        "for name in ('list', 'doctor'):\n"
        "    module = __import__(f'attnbench.cli.{name}', fromlist=['x'])\n"
        "    setattr(module, 'out', console.out)\n"
        "from attnbench.cli import main; main()"
    )
    environment = {**os.environ, "COLUMNS": "80"}
    environment.pop("FORCE_COLOR", None)
    program = [sys.executable, "-c", width, *command]
    done = subprocess.run(program, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    assert max(len(line.rstrip()) for line in done.stdout.splitlines()) <= 80
    assert "\x1b" not in done.stdout
    piped = call(*command)
    assert "\x1b" not in piped.stdout


def test_list_says_what_each_backend_can_do(attnbench: Any) -> None:
    listed = {one["name"]: one for one in json.loads(attnbench("list", "--json").stdout)}
    assert listed["naive"]["available"] is True
    assert "cpu" in listed["naive"]["capabilities"]["devices"]
    shown = attnbench("list").stdout
    assert all(name in shown for name in listed)
    takes = listed["flex"]["takes"]
    assert (takes["cpu"]["backward"], takes["cuda"]["backward"]) == (False, True)
    assert set(listed["sdpa_flash"]["takes"]["cuda"]["masks"]) == {"full", "causal", "causal(top_left)"}
    assert "cpu" not in listed["sdpa_cudnn"]["takes"]


@pytest.mark.parametrize(("what", "name"), [("suites", "quick"), ("masks", "causal or causal(top_left)")])
def test_suites_and_masks_are_listed(what: str, name: str, attnbench: Any) -> None:
    assert name in attnbench("list", what).stdout
    assert name in [one["name"] for one in json.loads(attnbench("list", what, "--json").stdout)]


@pytest.mark.parametrize("command", [("compile", "triton"), ("gate", "--base", "HEAD")], ids=lambda c: c[0])
@pytest.mark.parametrize("arch", ["sm_9x", "90", "sm_80,"])
def test_an_architecture_that_is_none_is_named(arch: str, command: tuple[str, ...], attnbench: Any) -> None:
    done = attnbench(*command, "--arch", arch)
    assert done.exit_code == 2, done.output
    assert f"no architecture {arch.split(',')[-1]!r}" in done.stderr


def test_a_distribution_without_a_case_is_refused(attnbench: Any) -> None:
    done = attnbench("check", "naive", "--distribution", "large")
    assert done.exit_code == 2
    assert "--distribution needs --case" in done.stderr
