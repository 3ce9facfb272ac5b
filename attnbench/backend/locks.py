"""The shipped locks: what is installed in the environment of a backend.

A lock is `backends/locks/NAME.txt`: requirements with all versions, and comments with a meaning:
`# modules: a, b` (must import afterwards), `# step: OPTIONS` (what follows is a separate pip install with these
options), `# cuda` (what follows is installed only for CUDA), `# by hand: TEXT` (not installable; how to build it).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from attnbench.backend.sources import bundled_folder
from attnbench.errors import EnvironmentUnavailable, did_you_mean


@dataclass(frozen=True)
class Step:
    """One `pip install`: its requirements, its options, and whether it is for CUDA only."""

    requirements: tuple[str, ...]
    options: tuple[str, ...] = ()
    cuda: bool = False


@dataclass(frozen=True)
class Lock:
    """What is installed in an environment; `digest` changes with any of it."""

    name: str
    steps: tuple[Step, ...]
    modules: tuple[str, ...]
    by_hand: str = ""

    @property
    def digest(self) -> str:
        text = repr((self.steps, self.modules))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def has_cuda(self) -> bool:
        return any(step.cuda for step in self.steps)


def locks_folder() -> Path:
    """The folder of the shipped locks."""
    return bundled_folder() / "locks"


def read_lock(path: Path) -> Lock:
    """Read a lock file; the format is in the docstring of this module."""
    modules: tuple[str, ...] = ()
    by_hand: list[str] = []
    steps: list[Step] = []
    lines: list[str] = []
    options: tuple[str, ...] = ()
    cuda = False

    def close() -> None:
        if lines:
            steps.append(Step(tuple(lines), options, cuda))
            lines.clear()

    for line in path.read_text(encoding="utf-8").splitlines():
        if comment := re.match(r"# (modules|step|by hand):\s*(.*)$", line):
            word, rest = comment.groups()
            if word == "modules":
                modules = tuple(m.strip() for m in rest.split(",") if m.strip())
            elif word == "by hand":
                by_hand.append(rest)
            else:
                close()
                options, cuda = tuple(rest.split()), False
        elif line.strip() == "# cuda":
            close()
            options, cuda = (), True
        elif line.strip() and not line.startswith("#"):
            lines.append(line.strip())
    close()
    return Lock(path.stem, tuple(steps), modules, " ".join(by_hand))


def locks() -> dict[str, Lock]:
    """Every shipped lock by the name of its environment."""
    return {path.stem: read_lock(path) for path in sorted(locks_folder().glob("*.txt"))}


def lock_of(name: str) -> Lock:
    """The lock of an environment; raises EnvironmentUnavailable with the nearest name."""
    shipped = locks()
    if name not in shipped:
        near = did_you_mean(name, shipped)
        raise EnvironmentUnavailable(f"no environment called {name!r}{near}; there are {', '.join(shipped)}")
    return shipped[name]
