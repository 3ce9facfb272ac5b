"""The backends that a change touches: those whose code differs between base and head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attnbench.backend import entries
from attnbench.backend.sources import backends_in, changed, sources_of
from attnbench.errors import AttnbenchError, UnknownBackend, did_you_mean
from attnbench.gate.arms import Arm

FOLDER = "backends"
BASE_ARM, HEAD_ARM = "base", "head"


@dataclass(frozen=True)
class BackendVersions:
    """One backend in both revisions; `base` or `head` is None if that revision lacks it."""

    name: str
    base: Arm | None
    head: Arm | None


@dataclass(frozen=True)
class Touched:
    """The backends to gate; those with the same code in both; those that cannot run here, with the reason."""

    versions: tuple[BackendVersions, ...]
    same: tuple[str, ...] = ()
    unavailable: tuple[tuple[str, str], ...] = ()


def touched(base: Path, head: Path, names: Sequence[str] | None = None, everything: bool = False) -> Touched:
    """The backends to gate between two trees of a repository, each with a folder `backends/`.

    `names` takes these, changed or not (file.py:function is looked up in both trees); `everything` takes all that
    can run here; else those whose own code, or the code of siblings they import, differs. Comments and layout do
    not count. Backends whose own files changed come first.
    """
    by_path = [name for name in names or () if ".py:" in name]
    by_name = None if names is None else [name for name in names if ".py:" not in name]
    versions = [_by_path(name, base, head) for name in by_path]
    same: list[str] = []
    through_others: set[str] = set()
    unavailable: list[tuple[str, str]] = []
    if by_name is None or by_name:
        folders = base / FOLDER, head / FOLDER
        before, after = (backends_in(folder) for folder in folders)
        files_of = {**before, **after}
        for name in by_name or ():
            if name not in files_of:
                raise UnknownBackend(
                    f"no backend called {name!r} in either revision{did_you_mean(name, files_of)}"
                )
        lacking = [
            {entry.name: entry.reason for entry in entries(folder) if not entry.available}
            for folder in folders
        ]
        for name in sorted(files_of if by_name is None else by_name):
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
                # If only head cannot run here, head lost it, which the gate reports.
                unavailable.append((name, lacking[1].get(name) or lacking[0][name]))
            else:
                arms = [
                    Arm(arm, name, folder) if name in files else None
                    for arm, files, folder in ((BASE_ARM, before, folders[0]), (HEAD_ARM, after, folders[1]))
                ]
                versions.append(BackendVersions(name, *arms))
                if not set(differing) & _own(name, *folders):
                    through_others.add(name)
    versions.sort(key=lambda one: one.name in through_others)
    return Touched(tuple(versions), tuple(same), tuple(unavailable))


def _own(name: str, *folders: Path) -> set[str]:
    """The files of a backend itself, in either folder: its file, or those of its folder."""
    inside = {f.relative_to(folder).as_posix() for folder in folders for f in (folder / name).rglob("*")}
    return {f"{name}.py", *inside}


def _by_path(name: str, base: Path, head: Path) -> BackendVersions:
    if Path(name.rpartition(":")[0]).is_absolute():
        raise AttnbenchError(
            f"{name} is absolute; give the path from the top of the repository, so that both revisions have it"
        )
    arms = [
        Arm(arm, f"{tree / name}") if (tree / name.rpartition(":")[0]).is_file() else None
        for arm, tree in ((BASE_ARM, base), (HEAD_ARM, head))
    ]
    if arms == [None, None]:
        raise UnknownBackend(f"no file {name.rpartition(':')[0]!r} in either revision")
    return BackendVersions(name, *arms)
