"""Do imports go one way? A folder imports only from folders with smaller numbers, and no file in a circle."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2] / "attnbench"
LAYER = {
    "errors": 0,
    "device": 1,
    "problem": 1,
    "backend": 2,
    "judge": 3,
    "measure": 3,
    "conformance": 4,
    "selftest": 5,
    "sweep": 5,
    "gate": 6,
    "layer": 6,
    "models": 7,
    "report": 7,
    "session": 8,
    "cli": 9,
}


def imports_of(source: str) -> list[str]:
    """The attnbench modules that a file imports when it is itself imported or run, TYPE_CHECKING blocks aside."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.append(node.module)
        elif isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
    return [name for name in names if name.split(".")[0] == "attnbench"]


def wrong_imports(folder: str, source: str) -> list[str]:
    """The imports of a file in `folder` that run the wrong way."""
    wrong = []
    for name in imports_of(source):
        target = name.split(".")[1] if "." in name else ""
        if target == folder or (folder, name) == ("cli", "attnbench"):  # the command line says the version
            continue
        if target not in LAYER or LAYER[target] >= LAYER[folder]:
            wrong.append(name)
    return wrong


def files() -> list[tuple[str, Path]]:
    found = []
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).parts
        if parts[0] != "__init__.py":
            found.append((parts[0].removesuffix(".py"), path))
    return found


@pytest.mark.parametrize(("folder", "path"), files(), ids=lambda x: x.name if isinstance(x, Path) else x)
def test_a_file_imports_only_from_earlier_folders(folder: str, path: Path) -> None:
    assert wrong_imports(folder, path.read_text()) == []


def test_an_import_the_wrong_way_is_seen() -> None:
    assert wrong_imports("problem", "from attnbench.backend import Backend") == ["attnbench.backend"]
    assert wrong_imports("judge", "def f():\n    import attnbench.measure.clock") == [
        "attnbench.measure.clock"
    ]
    assert wrong_imports("gate", "import attnbench") == ["attnbench"]
    assert wrong_imports("cli", "from attnbench.report import frame") == []


def test_no_two_modules_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for _, path in files():
        name = ".".join(("attnbench", *path.relative_to(ROOT).with_suffix("").parts)).removesuffix(
            ".__init__"
        )
        tree = ast.parse(path.read_text())
        graph[name] = set()
        for node in tree.body:
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                folder = ROOT.parent / node.module.replace(".", "/")
                inside = [a.name for a in node.names if (folder / f"{a.name}.py").exists()]
                # `from attnbench.sweep import store` needs the module store, not what the folder offers.
                graph[name] |= {f"{node.module}.{module}" for module in inside}
                if len(inside) < len(node.names):
                    graph[name].add(node.module)
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, f"a circle of imports: {' -> '.join((*path, name))}"
        if name in done or name not in graph:
            return
        for target in graph[name]:
            visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_harness_knows_no_backend_by_name() -> None:
    bundled = {p.stem for p in (ROOT.parent / "backends").glob("[a-z]*.py")} - {"naive", "triton", "flex"}
    for _, path in files():
        text = path.read_text()
        # Examples in help texts and docstrings may name a backend; code may not import one.
        assert "attnbench_backends." not in text, path
        assert not any(f"import {name}" in text for name in bundled), path


def test_only_the_rooms_that_may_touch_the_disk_do() -> None:
    allowed = {
        "sweep/store.py",
        "sweep/worker.py",
        "backend/environments.py",
        "backend/registry.py",
    }
    for folder, path in files():
        if folder in ("report", "cli") or str(path.relative_to(ROOT)) in allowed:
            continue
        calls = {
            ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)
        }
        assert "print" not in calls, f"{path} prints; computing and printing never share a function"
