"""A temporary git worktree of a revision, removed after use."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from attnbench.errors import AttnbenchError

GIT_TIMEOUT_S = 300.0


class GitRefused(AttnbenchError):
    """git failed; the message ends with its last line."""


def repository(folder: Path) -> Path:
    """The top of the git repository that `folder` is in; AttnbenchError if it is in none."""
    try:
        return Path(_git(folder, "rev-parse", "--show-toplevel"))
    except GitRefused as error:
        raise AttnbenchError(
            f"{folder} is in no readable git repository ({error}); "
            "run the gate in one, or give two folders that `attnbench run --out` wrote"
        ) from error


def commit_of(revision: str, folder: Path) -> str:
    """The full hash of a revision of the repository that `folder` is in; AttnbenchError if there is none."""
    if revision.startswith("-"):
        raise AttnbenchError(f"{revision!r} is not a revision; give a branch, a tag or a commit")
    repository(folder)
    try:
        return _git(folder, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    except GitRefused as error:
        raise AttnbenchError(
            f"{revision!r} is neither a result folder nor a revision of the repository in {folder}; "
            "give a branch, a tag, a commit or a folder that `attnbench run --out` wrote "
            "(in CI: check out with the whole history)"
        ) from error


@contextmanager
def checked_out(commit: str, folder: Path) -> Iterator[Path]:
    """A temporary worktree of the repository at this commit; submodules are not in it."""
    top = repository(folder)
    with tempfile.TemporaryDirectory(prefix="attnbench-worktree-") as scratch:
        tree = Path(scratch).resolve() / "tree"
        try:
            _git(top, "worktree", "add", "--detach", "--quiet", str(tree), commit)
            yield tree
        finally:
            # Suppressed: an earlier error matters more, and git forgets a deleted folder by itself.
            with suppress(AttnbenchError):
                _git(top, "worktree", "remove", "--force", str(tree))


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=GIT_TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise AttnbenchError("git is not installed; gate two result folders instead") from error
    except subprocess.TimeoutExpired as error:
        raise AttnbenchError(f"`{' '.join(command)}` is not done after {GIT_TIMEOUT_S:g} s") from error
    if ran.returncode:
        lines = ran.stderr.strip().splitlines()
        raise GitRefused(
            f"`{' '.join(command)}` failed: {lines[-1] if lines else f'status {ran.returncode}'}"
        )
    return ran.stdout.strip()
