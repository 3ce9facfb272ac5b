"""What did a git repository hold at a revision? A worktree of its own, gone when it is no longer needed."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnbench.errors import AttnbenchError

LONG_S = 300.0


class GitRefused(AttnbenchError):
    """git ran and said no; the message has its last words."""


def repository(folder: Path) -> Path:
    """The top of the git repository that `folder` is in; AttnbenchError where it is in none."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel"))
    except GitRefused as problem:
        raise AttnbenchError(
            f"{folder} is in no git repository that can be read ({problem}); "
            "gate there, or give two folders that `attnbench run --out` wrote"
        ) from problem


def commit_of(revision: str, folder: Path) -> str:
    """The full hash of a revision of the repository that `folder` is in; AttnbenchError where there is none."""
    if revision.startswith("-"):
        raise AttnbenchError(f"{revision!r} is no revision; give a branch, a tag or a commit")
    repository(folder)
    try:
        return _git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except GitRefused as problem:
        raise AttnbenchError(
            f"{revision!r} is neither a result folder nor a revision of the repository in {folder}; "
            "give a branch, a tag, a commit or a folder that `attnbench run --out` wrote "
            "(in CI: check out with the whole history)"
        ) from problem


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A temporary worktree of the repository at this commit; submodules are not in it."""
    top = repository(folder)
    with tempfile.TemporaryDirectory(prefix="attnbench-worktree-") as scratch:
        there = Path(scratch).resolve() / "tree"
        try:
            _git(top, "worktree", "add", "--detach", "--quiet", str(there), commit)
            yield there
        finally:
            # Suppressed: what went wrong before is what is to be said, and git forgets a folder that is gone by itself.
            with suppress(AttnbenchError):
                _git(top, "worktree", "remove", "--force", str(there))


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=LONG_S, check=False)
    except FileNotFoundError as problem:
        raise AttnbenchError("git is not installed; gate two result folders instead") from problem
    except subprocess.TimeoutExpired as problem:
        raise AttnbenchError(f"`{' '.join(command)}` is not done after {LONG_S:g} s") from problem
    if ran.returncode:
        said = ran.stderr.strip().splitlines()
        raise GitRefused(f"`{' '.join(command)}` failed: {said[-1] if said else f'status {ran.returncode}'}")
    return ran.stdout.strip()
