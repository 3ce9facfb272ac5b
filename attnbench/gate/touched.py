"""Which backends can a change touch? Those whose files say something else in head than in base."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.backend import entries
from attnbench.backend.sources import backends_in, changed, sources_of
from attnbench.errors import AttnbenchError, UnknownBackend, did_you_mean
from attnbench.gate.arms import Arm

FOLDER = "backends"
BASE, HEAD = "base", "head"


@dataclass(frozen=True)
class Contest:
    """One backend in two forms; `base` or `head` None where that side has no such backend."""

    name: str
    base: Arm | None
    head: Arm | None


@dataclass(frozen=True)
class Touched:
    """What is to be held against each other; which are the same in both; which cannot run here, with the reason."""

    contests: tuple[Contest, ...]
    same: tuple[str, ...] = ()
    unavailable: tuple[tuple[str, str], ...] = ()


def touched(base: Path, head: Path, names: Sequence[str] | None = None, everything: bool = False) -> Touched:
    """The contests between two trees of a repository, each with a folder `backends/`.

    `names` takes these whether changed or not (file.py:function is looked up in both trees), `everything` all that
    can run here; else those whose own files, or siblings that these import, mean something else. Comments and
    layout mean nothing. Those whose own files changed come first.
    """
    by_path = [name for name in names or () if ".py:" in name]
    by_name = None if names is None else [name for name in names if ".py:" not in name]
    contests = [_by_path(name, base, head) for name in by_path]
    same: list[str] = []
    through_others: set[str] = set()
    unavailable: list[tuple[str, str]] = []
    if by_name is None or by_name:
        folders = base / FOLDER, head / FOLDER
        before, after = (backends_in(folder) for folder in folders)
        known = {**before, **after}
        for name in by_name or ():
            if name not in known:
                raise UnknownBackend(
                    f"no backend called {name!r} in either revision{did_you_mean(name, known)}"
                )
        lacking = [
            {entry.name: entry.reason for entry in entries(folder) if not entry.available}
            for folder in folders
        ]
        for name in sorted(known if by_name is None else by_name):
            sides = [
                sources_of(files[name], folder) if name in files else {}
                for files, folder in ((before, folders[0]), (after, folders[1]))
            ]
            differing = changed(*sides)
            if not differing and by_name is None and not everything:
                same.append(name)
            elif all(
                name in lacks or name not in files
                for lacks, files in zip(lacking, (before, after), strict=True)
            ):
                # Where only head cannot run here, head lost it: that is the gate's to say.
                unavailable.append((name, lacking[1].get(name) or lacking[0][name]))
            else:
                arms = [
                    Arm(arm, name, folder) if name in files else None
                    for arm, files, folder in ((BASE, before, folders[0]), (HEAD, after, folders[1]))
                ]
                contests.append(Contest(name, *arms))
                if not set(differing) & _own(name, *folders):
                    through_others.add(name)
    contests.sort(key=lambda contest: contest.name in through_others)
    return Touched(tuple(contests), tuple(same), tuple(unavailable))


def _own(name: str, *folders: Path) -> set[str]:
    """The files of a backend itself, in either folder: its file, or those of its folder."""
    inside = {f.relative_to(folder).as_posix() for folder in folders for f in (folder / name).rglob("*")}
    return {f"{name}.py", *inside}


def _by_path(name: str, base: Path, head: Path) -> Contest:
    if Path(name.rpartition(":")[0]).is_absolute():
        raise AttnbenchError(
            f"{name}: give a path in the repository, from its top, so that both revisions have it"
        )
    arms = [
        Arm(arm, f"{tree / name}") if (tree / name.rpartition(":")[0]).is_file() else None
        for arm, tree in ((BASE, base), (HEAD, head))
    ]
    if arms == [None, None]:
        raise UnknownBackend(f"no file {name.rpartition(':')[0]!r} in either revision")
    return Contest(name, *arms)
