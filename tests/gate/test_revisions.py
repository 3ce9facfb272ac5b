"""A gate on revisions of a real repository names what got worse, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from attnbench.cli.app import app
from attnbench.errors import AttnbenchError
from attnbench.gate import Rule, gate_in_stages, touched
from attnbench.gate.arms import ArmRunner
from attnbench.gate.worktree import checked_out, commit_of
from attnbench.problem import Case, Causal
from attnbench.sweep.suite import Planned

PLAIN = """
import torch
from attnbench.backend import function_backend


def attend(q, k, v, *, mask, scores, scale):
    if scores:
        raise NotImplementedError("no score changes")
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2], device=q.device)
    s = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale
    s = s.masked_fill(~allowed, -torch.inf)
    return torch.einsum("bhqk,bhkd->bhqd", s.softmax(-1), v)


backend = attend
"""
SLOW = PLAIN.replace("    return torch", "    for _ in range(6):\n        (s + s).exp()\n    return torch")
WRONG = PLAIN.replace("* scale", "* (1.01 * scale)")
REFUSES = PLAIN.replace("if scores:", "if q.shape[2] > 100:")
LARGE = PLAIN.replace(
    "    return torch",
    "    kept = torch.zeros(16 << 20) + s.flatten()[0] * 0\n    s = s + kept[0]\n    return torch",
)
COMMENT = PLAIN.replace("import torch\n", "# What torch has.\nimport torch\n")
RULE = Rule(effect=0.2, stages=2, groups=2, rounds=6)

Repository = Callable[..., Path]


def git(folder: Path, *arguments: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    done = subprocess.run(
        ["git", "-C", str(folder), *who, *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    """`repository(SLOW)`: two commits; `first` and `second` are backends, and the second commit changes `first`."""

    def make(head: str | None) -> Path:
        folder = tmp_path / "repository"
        (folder / "backends").mkdir(parents=True)
        git(tmp_path, "init", "-q", "repository")
        (folder / "backends/first.py").write_text(PLAIN)
        (folder / "backends/second.py").write_text(PLAIN)
        git(folder, "add", "-A")
        git(folder, "commit", "-qm", "base")
        if head is None:
            (folder / "backends/first.py").unlink()
        else:
            (folder / "backends/first.py").write_text(head)
        git(folder, "commit", "-qam", "head")
        return folder

    return make


@pytest.fixture
def planned() -> list[Planned]:
    sizes = {"q_heads": 2, "head_dim": 16, "dtype": "fp32", "mask": Causal()}
    return [Planned(Case(q_len=n, k_len=n, **sizes)) for n in (64, 128)]  # type: ignore[arg-type]


def findings(folder: Path, planned: list[Planned]) -> Any:
    with (
        checked_out(commit_of("HEAD~1", folder), folder) as base,
        ArmRunner("cpu", threads=1, rounds=RULE.rounds) as runner,
    ):
        return gate_in_stages(runner, planned, touched(base, folder).versions, RULE)


@pytest.mark.parametrize(
    ("head", "kinds"),
    [
        (SLOW, {("slower", "q64"), ("slower", "q128")}),
        (WRONG, {("wrong", "q64"), ("wrong", "q128")}),
        (REFUSES, {("missing", "q128")}),
        (LARGE, {("bigger", "q64"), ("bigger", "q128"), ("slower", "q64"), ("slower", "q128")}),
        (None, {("missing", "every case")}),
        ("raise RuntimeError('a mistake')\n", {("missing", "q64"), ("missing", "q128")}),
    ],
    ids=["slower", "wrong", "refuses", "larger", "gone", "broken"],
)
def test_what_got_worse_is_named_and_nothing_else(
    repository: Repository, planned: list[Planned], head: str | None, kinds: set[tuple[str, str]]
) -> None:
    verdict = findings(repository(head), planned)
    assert {(f.kind, f.case.split("-")[0]) for f in verdict.failures} == kinds, [
        f.message for f in verdict.findings
    ]
    assert {f.backend for f in verdict.findings} == {"first"}
    assert verdict.exit_code() == 1


def test_a_worktree_is_gone_afterwards(repository: Repository) -> None:
    folder = repository(SLOW)
    with checked_out(commit_of("HEAD~1", folder), folder) as tree:
        assert (tree / "backends/first.py").read_text() == PLAIN
    assert not tree.exists()
    assert len(git(folder, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt, AttnbenchError])
def test_a_worktree_is_gone_after_what_went_wrong_in_it(
    repository: Repository, error: type[BaseException]
) -> None:
    folder = repository(SLOW)
    with pytest.raises(error), checked_out(commit_of("HEAD", folder), folder) as tree:
        raise error
    assert not tree.exists()
    assert len(git(folder, "worktree", "list").splitlines()) == 1


def test_the_first_error_is_raised_if_the_worktree_cannot_be_removed_either(repository: Repository) -> None:
    folder = repository(SLOW)
    trees = []

    def gated() -> None:
        with checked_out(commit_of("HEAD", folder), folder) as tree:
            trees.append(tree)
            (tree / ".git").unlink()
            raise AttnbenchError("the kernel is wrong")

    with pytest.raises(AttnbenchError, match="the kernel is wrong"):
        gated()
    assert not trees[0].exists()


@pytest.mark.skipif(os.name != "posix", reason="needs POSIX signals")
def test_a_gate_that_is_ended_leaves_no_worktree(repository: Repository) -> None:
    folder = repository(SLOW)
    command = [sys.executable, "-c", "from attnbench.cli import main; main()", "gate", "--base", "HEAD~1"]
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as gate:
        assert gate.stderr is not None
        lines = [gate.stderr.readline()]
        while lines[-1] and "stage 1" not in lines[-1]:
            lines.append(gate.stderr.readline())
        assert len(git(folder, "worktree", "list").splitlines()) == 2, lines
        gate.terminate()
        last = gate.communicate(timeout=500)[1]
    assert gate.returncode == 130
    assert last == "attnbench: interrupted\n"
    assert len(git(folder, "worktree", "list").splitlines()) == 1


@pytest.mark.parametrize("revision", ["no-such-branch", "--help", ""])
def test_a_text_that_is_no_revision_is_refused(repository: Repository, revision: str) -> None:
    with pytest.raises(AttnbenchError, match="revision"):
        commit_of(revision, repository(SLOW))


def test_a_folder_without_a_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AttnbenchError, match=r"in no readable git repository.*give two folders"):
        commit_of("main", tmp_path)


def test_a_machine_without_git_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AttnbenchError, match="git is not installed"):
        commit_of("main", tmp_path)


def test_a_change_of_comments_passes_and_writes_its_reports(
    repository: Repository, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(repository(COMMENT))
    reports = ["--summary", str(tmp_path / "s.md"), "--junit", str(tmp_path / "j.xml"), "--annotations"]
    ran = CliRunner().invoke(app, ["gate", "--base", "HEAD~1", "--json", *reports])
    assert ran.exit_code == 0, ran.output
    verdict = json.loads(ran.stdout)
    assert verdict["findings"] == []
    assert verdict["notes"] == ["backends not timed, their code is the same in both: 2 (--all times them)"]
    assert (tmp_path / "s.md").read_text()
    assert (tmp_path / "j.xml").read_text().startswith("<?xml")


def test_two_kinds_of_base_and_head_are_refused(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(repository(SLOW))
    ran = CliRunner().invoke(app, ["gate", "--base", ".", "--head", "HEAD"])
    assert ran.exit_code == 2
    assert "--head must be one too" in ran.output
