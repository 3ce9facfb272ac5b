"""The source code of a backend, as digests that tell whether its meaning changed. Read, never run.

A backend's source is all of its own files (those of its folder) and, of the files that these import, the definitions
that they name, what those name, and so on. A Python file counts by its meaning, without comments and layout; any
other file by its bytes.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from attnbench.errors import AttnbenchError

SKIPPED = {"__pycache__"}
BACKENDS_PACKAGE = "attnbench_backends"  # the package under which an installed folder of backends is imported


def bundled_folder() -> Path:
    """The folder of the bundled backends."""
    spec = find_spec(BACKENDS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise AttnbenchError(
            f"the package {BACKENDS_PACKAGE} is not installed; run `pip install -e .` in the repository"
        )
    return Path(next(iter(spec.submodule_search_locations)))


def backends_in(folder: Path) -> dict[str, Path]:
    """The backends of a folder by name, one file or one folder each; a leading underscore marks a shared file."""
    if not folder.is_dir():
        raise AttnbenchError(
            f"no folder of backends at {folder}; give the folder that holds one file per backend"
        )
    paths = {path.stem: path for path in folder.glob("*.py")}
    paths |= {path.parent.name: path for path in folder.glob("*/__init__.py")}
    return {name: path for name, path in sorted(paths.items()) if not name.startswith("_")}


@dataclass(frozen=True)
class Source:
    """A file, or the definitions with these names in a Python file."""

    file: Path
    names: frozenset[str] | None = None

    def label(self, folder: Path) -> str:
        """Its name in the digests: `_shared.py`, `_shared.py: attend`."""
        path = self.file.relative_to(folder).as_posix()
        return path if self.names is None else f"{path}: {', '.join(sorted(self.names))}"


def sources_of(path: Path, folder: Path) -> dict[str, str]:
    """The sources of the backend at `path`: label (relative to `folder`) -> digest of the meaning."""
    todo = [Source(path)]
    if path.name == "__init__.py":
        inside = (file for file in path.parent.rglob("*") if file.is_file())
        todo += [Source(file) for file in inside if not SKIPPED & set(file.parts)]
    digests: dict[str, str] = {}
    while todo:
        source = todo.pop()
        label = source.label(folder)
        if label not in digests:
            digests[label], imported = _read(source, folder)
            todo += imported
    return digests


def changed(base: Mapping[str, str], head: Mapping[str, str]) -> list[str]:
    """The labels that one side lacks, or whose meaning differs."""
    return sorted(name for name in base.keys() | head.keys() if base.get(name) != head.get(name))


def _read(source: Source, folder: Path) -> tuple[str, list[Source]]:
    """The digest of a source, and what it imports from the folder."""
    content = source.file.read_bytes()
    if source.file.suffix != ".py":
        return hashlib.sha256(content).hexdigest(), []
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):
        return hashlib.sha256(content).hexdigest(), []  # a broken file counts by its bytes
    statements = tree.body if source.names is None else _needed(tree.body, source.names)
    digest = hashlib.sha256("\n".join(ast.dump(one) for one in statements).encode()).hexdigest()
    return digest, [imported for one in statements for imported in _imports(one, source.file, folder)]


def _needed(body: list[ast.stmt], names: frozenset[str]) -> list[ast.stmt]:
    """The statements that define these names and what they mention, and all that define nothing.

    The whole body if one of the names is not defined at its top level.
    """
    defining: dict[str, list[ast.stmt]] = {}
    for statement in body:
        for name in _defined(statement):
            defining.setdefault(name, []).append(statement)
    kept = {id(one) for one in body if not _defined(one) and not _is_text(one)}
    todo = [*names, *(name for one in body if id(one) in kept for name in _mentioned(one))]
    if not names <= defining.keys():
        return body
    seen: set[str] = set()
    while todo:
        name = todo.pop()
        if name in seen:
            continue
        seen.add(name)
        for statement in defining.get(name, ()):
            kept.add(id(statement))
            todo += _mentioned(statement)
    return [one for one in body if id(one) in kept]


def _defined(statement: ast.stmt) -> list[str]:
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            return [statement.name]
        case ast.Import() | ast.ImportFrom():
            return [(alias.asname or alias.name).split(".")[0] for alias in statement.names]
        case ast.Assign() | ast.AnnAssign():
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            return [one.id for target in targets for one in ast.walk(target) if isinstance(one, ast.Name)]
    return []


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _mentioned(statement: ast.stmt) -> Iterator[str]:
    return (node.id for node in ast.walk(statement) if isinstance(node, ast.Name))


def _imports(statement: ast.stmt, file: Path, folder: Path) -> Iterator[Source]:
    """What a statement imports from the folder, and the programs that it names by their file."""
    for node in ast.walk(statement):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.endswith(".py"):
            # A program that runs in another environment is started by its file's name.
            if (file.parent / node.value).is_file():
                yield Source(file.parent / node.value)
        elif isinstance(node, ast.ImportFrom):
            yield from _imported(node, file, folder)


def _imported(node: ast.ImportFrom, file: Path, folder: Path) -> Iterator[Source]:
    inside = (node.module or "").split(".") if node.module else []
    if node.level:
        base = file.parents[node.level - 1]
    elif inside and inside[0] == BACKENDS_PACKAGE:
        base, inside = folder, inside[1:]
    else:
        return
    target = base.joinpath(*inside)
    if not target.is_relative_to(folder):
        return
    names = frozenset(alias.name for alias in node.names)
    for module in (target.with_suffix(".py"), target / "__init__.py"):
        if inside and module.is_file():
            yield Source(module, None if "*" in names else names)
    for name in names:  # `from . import module`
        for module in (target / f"{name}.py", target / name / "__init__.py"):
            if module.is_file():
                yield Source(module)
