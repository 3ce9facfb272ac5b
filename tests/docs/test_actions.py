"""The workflow files follow GitHub's schemas, and the action passes the gate's exit code and summary on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).resolve().parents[2]
ACTION = ROOT / "action.yml"
WORKFLOWS = [*sorted((ROOT / ".github" / "workflows").glob("*.yml")), ROOT / "docs" / "examples" / "gate.yml"]
STAND_IN = """#!/bin/sh
for word in "$@"; do echo "[$word]"; done
while [ $# -gt 0 ]; do
  if [ "$1" = --summary ] && [ -z "$NO_SUMMARY" ]; then echo "## the verdict" > "$2"; fi
  shift
done
exit $EXIT_CODE
"""


def schema_check(schema: str, *files: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip(
        "check_jsonschema", reason="check-jsonschema, which has GitHub's schemas, is not installed"
    )
    command = [
        sys.executable,
        "-m",
        "check_jsonschema",
        "--builtin-schema",
        f"vendor.{schema}",
        *map(str, files),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def read_yaml(file: Path) -> Any:
    yaml = pytest.importorskip(
        "ruamel.yaml", reason="ruamel.yaml, which check-jsonschema brings, is not installed"
    )
    return yaml.YAML(typ="safe").load(file.read_text())


def test_the_workflows_follow_githubs_schema() -> None:
    done = schema_check("github-workflows", *WORKFLOWS)
    assert done.returncode == 0, done.stdout


def test_the_action_follows_githubs_schema() -> None:
    done = schema_check("github-actions", ACTION)
    assert done.returncode == 0, done.stdout


def test_a_misspelt_key_is_seen(tmp_path: Path) -> None:
    wrong = tmp_path / "gate.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    assert schema_check("github-workflows", wrong).returncode == 1


def test_the_workflows_pass_inputs_that_the_action_has() -> None:
    inputs = set(read_yaml(ACTION)["inputs"])
    passed = [
        set(step.get("with", ()))
        for file in WORKFLOWS
        for job in read_yaml(file)["jobs"].values()
        for step in job["steps"]
        if step.get("uses", "").partition("@")[0] in ("./", "OWNER/attnbench")
    ]
    assert len(passed) == 2
    assert all(names <= inputs for names in passed)


def test_no_input_stands_in_a_script() -> None:
    for step in read_yaml(ACTION)["runs"]["steps"]:
        assert "${{" not in step.get("run", "")
    for file in WORKFLOWS:
        for job in read_yaml(file)["jobs"].values():
            assert not [step for step in job["steps"] if "${{" in step.get("run", "")]


def run_gate_step(
    folder: Path, *, code: int = 0, summary: bool = True, **inputs: str
) -> tuple[int, list[str], Path]:
    """Run the action's last step with a stand-in for attnbench: its exit code, its arguments, the runner's folder."""
    if shutil.which("bash") is None:
        pytest.skip("the action's script needs bash, which is not installed")
    action = read_yaml(ACTION)
    program = folder / "attnbench" / "bin" / "attnbench"
    program.parent.mkdir(parents=True)
    program.write_text(STAND_IN)
    program.chmod(0o755)
    values = {name: str(about["default"]) for name, about in action["inputs"].items()} | inputs
    step = action["runs"]["steps"][-1]
    variables = {name: values[text.split("inputs.")[1].rstrip(" }")] for name, text in step["env"].items()}
    runner = {name: str(folder / name) for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        env={
            "PATH": os.environ["PATH"],
            "RUNNER_TEMP": str(folder),
            "EXIT_CODE": str(code),
            "NO_SUMMARY": "" if summary else "1",
        }
        | variables
        | runner,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    return done.returncode, [line[1:-1] for line in done.stdout.splitlines()], folder


@pytest.mark.parametrize("code", [0, 1, 3])
def test_the_action_exits_as_the_gate_does_and_posts_the_summary(tmp_path: Path, code: int) -> None:
    exit_code, words, folder = run_gate_step(tmp_path, code=code)
    assert exit_code == code
    files = [
        "--summary",
        f"{folder}/attnbench-gate.md",
        "--junit",
        f"{folder}/attnbench-gate.xml",
        "--annotations",
    ]
    assert words == ["gate", "--base", "HEAD^1", "--suite", "gate", "--effect", "0.05", *files]
    assert (folder / "GITHUB_STEP_SUMMARY").read_text() == "## the verdict\n"
    assert (folder / "GITHUB_OUTPUT").read_text().splitlines() == [
        f"summary={folder}/attnbench-gate.md",
        f"junit={folder}/attnbench-gate.xml",
    ]


def test_a_gate_without_a_verdict_keeps_its_exit_code(tmp_path: Path) -> None:
    assert run_gate_step(tmp_path, code=2, summary=False)[0] == 2


def test_inputs_reach_the_gate_unchanged_and_are_not_executed(tmp_path: Path) -> None:
    text = '$(touch planted) `touch planted`; touch planted "two words" *'
    _, words, _ = run_gate_step(
        tmp_path, base=text, head=text, suite=text, backend=text, arguments="--all  --strict"
    )
    assert words[:11] == [
        "gate",
        "--base",
        text,
        "--suite",
        text,
        "--effect",
        "0.05",
        "--head",
        text,
        "--backend",
        text,
    ]
    assert words[11:14] == ["--all", "--strict", "--summary"]
    assert not (tmp_path / "planted").exists()


def test_the_program_takes_the_arguments_of_the_action(tmp_path: Path) -> None:
    from attnbench.cli.app import app

    _, words, _ = run_gate_step(tmp_path, head="HEAD", backend="naive", arguments="--all")
    program: Any = typer.main.get_command(app)
    read = program.commands[words[0]].make_context("gate", words[1:])
    assert (read.params["base"], read.params["head"], read.params["effect"]) == ("HEAD^1", "HEAD", 0.05)
    assert read.params["annotations"]
    assert read.params["summary"] == tmp_path / "attnbench-gate.md"
