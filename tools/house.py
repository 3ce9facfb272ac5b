"""Files, lines and rules of the house: `python -m tools.house` prints a table of its rooms and exits 1 on a violation.

A room is a folder or a file directly under attnbench/. The rules: a room imports only rooms of a lower layer, no
module imports itself in a circle, no public class name is defined twice, a file name recurs only if RECURRING says
how the files differ, no room is larger than LARGEST_SHARE, and no public name is a submodule of attnbench.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BESIDE = ("backends", "suites", "tests", "tools")
LARGEST_SHARE = 0.20

# Room -> layer. A room imports only rooms of a lower layer.
LAYER = {
    "errors": 0,
    "statuses": 0,
    "waiting": 0,
    "device": 1,
    "problem": 1,
    "backend": 2,
    "judge": 3,
    "measure": 3,
    "faults": 4,
    "conformance": 5,
    "selftest": 6,
    "sweep": 6,
    "gate": 7,
    "layer": 7,
    "models": 8,
    "report": 8,
    "session": 9,
    "cli": 10,
}

# File name -> folder -> what the file of that folder holds.
RECURRING = {
    "diagnosis.py": {
        "conformance/diagnosis": "names the cause of a failure",
        "selftest": "counts how often the named cause is right",
    },
    "cache.py": {
        "cli": "what stored references take on disk",
        "layer": "keys and values of earlier tokens",
    },
    "gradients.py": {
        "faults": "faults of the backward alone",
        "conformance/properties": "identities that gradients obey",
    },
    "limits.py": {
        "conformance": "suspected limits of a plain function",
        "sweep": "limits of a worker's memory and time",
    },
    "markdown.py": {
        "report": "a report in Markdown",
        "report/gate": "the verdict of a gate in Markdown",
    },
    "masks.py": {
        "problem": "the algebra of masks",
        "selftest/mutants": "mutants that get the mask wrong",
    },
    "models.py": {
        "cli": "`attnbench run training` and `generation`",
        "report": "their tables and charts",
    },
    "one_case.py": {
        "conformance": "one case judged, with its tensors",
        "report/charts": "charts of it",
    },
    "plan.py": {
        "conformance": "which checks a level asks for",
        "selftest": "which mutants meet which cases",
    },
    "profile.py": {"cli": "the command", "measure": "the profiler"},
    "report.py": {"cli": "the command", "conformance": "what `check` returns"},
    "rounding.py": {
        "judge": "how far rounding moves an answer",
        "models": "how far rounding moves a whole model",
    },
    "run.py": {"cli": "the command", "models": "a run of a model suite"},
    "scores.py": {"judge": "float64 scores of a tile", "problem": "score changes as values"},
    "selftest.py": {"cli": "the command", "report": "its page"},
    "suite.py": {"models": "what training and generation share", "sweep": "suites of cases"},
    "tables.py": {"problem": "masks given as tables", "report": "tables of results"},
    "verdict.py": {"gate": "of a change", "judge": "of an answer"},
}


@dataclass(frozen=True)
class Source:
    """One Python file of attnbench/."""

    path: str  # in attnbench/, with forward slashes
    text: str

    @property
    def room(self) -> str:
        return self.path.split("/")[0].removesuffix(".py")

    @property
    def folder(self) -> str:
        return self.path.rpartition("/")[0]

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def module(self) -> str:
        return f"attnbench.{self.path.removesuffix('.py').replace('/', '.')}".removesuffix(".__init__")

    @property
    def lines(self) -> int:
        return len(self.text.splitlines())

    def package(self, level: int) -> str:
        """The package that `level` dots of a relative import mean in this file."""
        parts = f"attnbench/{self.path}".split("/")[:-1]
        return ".".join(parts[: len(parts) - level + 1])


def sources(folder: Path = ROOT / "attnbench") -> list[Source]:
    files = sorted(folder.rglob("*.py"))
    return [Source(f.relative_to(folder).as_posix(), f.read_text(encoding="utf-8")) for f in files]


def imports(source: Source, nodes: Iterable[ast.AST]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(module, names taken from it) of each import of attnbench among the nodes."""
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "attnbench":
                    yield alias.name, ()
        elif isinstance(node, ast.ImportFrom):
            parts = [source.package(node.level)] if node.level else []
            module = ".".join([*parts, *([node.module] if node.module else [])])
            if module.split(".")[0] == "attnbench":
                yield module, tuple(alias.name for alias in node.names)


def executed_nodes(text: str) -> list[ast.AST]:
    """Every node of a file but the bodies of `if TYPE_CHECKING`."""
    tree = ast.parse(text)
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    return list(ast.walk(tree))


def upward_imports(house: Sequence[Source]) -> list[str]:
    """The imports that do not lead to a lower layer, those inside functions included."""
    wrong = []
    for source in house:
        if source.path == "__init__.py":  # the public names come from every room
            continue
        for module, names in imports(source, executed_nodes(source.text)):
            # `from attnbench import problem` means a room too; the command line takes the version from attnbench.
            rooms = names if module == "attnbench" else (module.split(".")[1],)
            if source.room == "cli" and set(rooms) <= {"__version__"}:
                continue
            for room in rooms or ("attnbench",):
                if room != source.room and LAYER.get(room, 99) >= LAYER.get(source.room, -1):
                    wrong.append(f"{source.path} imports {module}: {room} is not below {source.room}")
    return wrong


def circles(house: Sequence[Source]) -> list[str]:
    """The circles of modules that import each other while they are loaded."""
    modules = {source.module for source in house}
    graph: dict[str, set[str]] = {}
    for source in house:
        graph[source.module] = set()
        for module, names in imports(source, ast.parse(source.text).body):
            # `from attnbench.sweep import store` needs the module store, not what the folder offers.
            inside = {f"{module}.{name}" for name in names} & modules
            graph[source.module] |= inside
            if len(inside) < len(names) or not names:
                graph[source.module].add(module)
    rings: list[str] = []
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            rings.append("a circle of imports: " + " -> ".join((*path[path.index(module) :], module)))
        elif module in graph and module not in done:
            for target in sorted(graph[module]):
                visit(target, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    return rings


def repeated_classes(house: Sequence[Source]) -> list[str]:
    """The public class names that are defined more than once, a class inside a function aside."""
    places: dict[str, list[str]] = defaultdict(list)
    for source in house:
        waiting: list[ast.AST] = [ast.parse(source.text)]
        while waiting:
            for node in ast.iter_child_nodes(waiting.pop()):
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    places[node.name].append(source.path)
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                    waiting.append(node)
    return [
        f"class {name} is defined in {' and '.join(sorted(at))}"
        for name, at in sorted(places.items())
        if len(at) > 1
    ]


def folders_by_name(house: Sequence[Source]) -> dict[str, set[str]]:
    folders: dict[str, set[str]] = defaultdict(set)
    for source in house:
        if source.name != "__init__.py":
            folders[source.name].add(source.folder)
    return folders


def repeated_files(house: Sequence[Source], recurring: dict[str, dict[str, str]] = RECURRING) -> list[str]:
    """The file names that recur without a word in `recurring`, and the words there that no file needs."""
    folders, wrong = folders_by_name(house), []
    for name in sorted(folders | recurring.keys()):
        here, listed = folders.get(name, set()), set(recurring.get(name, ()))
        if len(here) < 2 and listed:
            wrong.append(f"{name} no longer recurs: remove it from RECURRING")
        elif len(here) > 1 and here != listed:
            unlike = ", ".join(f"{folder or '.'}/" for folder in sorted(here ^ listed))
            wrong.append(f"{name} recurs: rename it, or say in RECURRING how it differs ({unlike})")
    return wrong


def lines_by_room(house: Sequence[Source]) -> Counter[str]:
    lines: Counter[str] = Counter()
    for source in house:
        lines[source.room] += source.lines
    return lines


def large_rooms(house: Sequence[Source], most: float = LARGEST_SHARE) -> list[str]:
    lines = lines_by_room(house)
    total = lines.total()
    return [
        f"{room} is {count / total:.1%} of attnbench/; at most {most:.0%}: divide it"
        for room, count in lines.items()
        if count > most * total
    ]


def shadowed_names(house: Sequence[Source], public: Iterable[str]) -> list[str]:
    """The public names that are submodules: importing one would replace the name by the module."""
    rooms = {source.room for source in house}
    return [f"the public name {name} is also the module attnbench.{name}" for name in public if name in rooms]


def violations(house: Sequence[Source], public: Iterable[str]) -> list[str]:
    return [
        *upward_imports(house),
        *circles(house),
        *repeated_classes(house),
        *repeated_files(house),
        *large_rooms(house),
        *shadowed_names(house, public),
    ]


def table(house: Sequence[Source], root: Path = ROOT) -> str:
    """Python files and lines per room, in the order of the layers, and of the folders beside attnbench/."""
    files, lines = Counter(source.room for source in house), lines_by_room(house)
    total = lines.total()
    rows = [f"{'room':<16}{'layer':>6}{'files':>7}{'lines':>8}{'share':>8}"]
    for room in sorted(files, key=lambda room: (LAYER.get(room, 99), room)):
        layer = LAYER.get(room, "")
        rows.append(f"{room:<16}{layer:>6}{files[room]:>7}{lines[room]:>8}{lines[room] / total:>8.1%}")
    rows.append(f"{'attnbench/':<16}{'':>6}{files.total():>7}{total:>8}{1:>8.1%}")
    for folder in BESIDE:
        counts = [
            len(path.read_text(encoding="utf-8").splitlines()) for path in (root / folder).rglob("*.py")
        ]
        rows.append(f"{folder + '/':<16}{'':>6}{len(counts):>7}{sum(counts):>8}")
    rows += ["", "file names that recur:"]
    for name, folders in sorted(folders_by_name(house).items()):
        if len(folders) > 1:
            words = RECURRING.get(name, {})
            rows.append(f"{name:<16}" + "; ".join(f"{f}/: {words.get(f, '?')}" for f in sorted(folders)))
    return "\n".join(rows)


def main() -> int:
    import attnbench

    house = sources()
    wrong = violations(house, attnbench.__all__)
    print(table(house))
    print()
    print("\n".join(wrong) if wrong else "no violation")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
