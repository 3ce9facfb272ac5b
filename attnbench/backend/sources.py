"""Which files is a backend made of, and do they say something else now? Read, never run.

A backend's files are its own (or those of its folder) and the siblings that these import, and so on. A Python file
is what it means, without comments and layout; any other file is its bytes.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
from collections.abc import Mapping
from pathlib import Path

from attnbench.errors import AttnbenchError

SKIPPED = {"__pycache__"}


def backends_in(folder: Path) -> dict[str, Path]:
    """The backends of a folder by name: one file or one folder each; names with an underscore are none."""
    if not folder.is_dir():
        raise AttnbenchError(
            f"no folder of backends at {folder}; give the folder that holds one file a backend"
        )
    found = {path.stem: path for path in folder.glob("*.py")}
    found |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return {name: path for name, path in sorted(found.items()) if not name.startswith("_")}


def sources_of(path: Path, folder: Path) -> dict[str, str]:
    """File (relative to `folder`) -> digest of its meaning, of the backend at `path` and of what it imports there."""
    todo, found = [path], {}
    while todo:
        file = todo.pop()
        name = file.relative_to(folder).as_posix()
        if name in found:
            continue
        found[name] = digest_of(file)
        if file.suffix == ".py":
            todo += _imported(file, folder)
        if file.name == "__init__.py" and file.parent != folder:
            inside = (f for f in file.parent.rglob("*") if f.is_file() and not SKIPPED & set(f.parts))
            todo += inside
    return found


def digest_of(file: Path) -> str:
    """Of a Python file's syntax tree, where it has one; of the bytes of any other."""
    content = file.read_bytes()
    if file.suffix == ".py":
        with contextlib.suppress(SyntaxError, ValueError):  # broken files differ by their bytes
            content = ast.dump(ast.parse(content)).encode()
    return hashlib.sha256(content).hexdigest()


def _imported(file: Path, folder: Path) -> list[Path]:
    """The files of relative imports and of `attnbench_backends`, and those that a string names."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return []
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".py"):
            # A program that runs in another environment is called by its file's name.
            found += [p for p in (file.parent / node.value,) if p.is_file()]
        if not isinstance(node, ast.ImportFrom):
            continue
        if node.level:
            home = file.parent
            for _ in range(node.level - 1):
                home = home.parent
        elif (node.module or "").split(".")[0] == "attnbench_backends":
            home = folder
        else:
            continue
        parts = (node.module or "").split(".") if node.level else (node.module or "").split(".")[1:]
        target = home.joinpath(*[p for p in parts if p])
        named = [target, *(target / alias.name for alias in node.names)]
        found += [p for n in named for p in (n.with_suffix(".py"), n / "__init__.py") if p.is_file()]
    return [p for p in found if p.is_relative_to(folder)]


def changed(base: Mapping[str, str], head: Mapping[str, str]) -> list[str]:
    """The files that one side lacks, or that say something else."""
    return sorted(name for name in base.keys() | head.keys() if base.get(name) != head.get(name))
