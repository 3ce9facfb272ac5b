"""Only cli/ and report/ print; the files that touch the disk or start processes are the list in this file."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tools import house

PRINTING_ROOMS = {"cli", "report"}

# File -> (what it does, why). "starts" processes also means ending them. Imports and anonymous pipes do not count.
TOUCHES: dict[str, tuple[str, str]] = {
    "backend/ahead_of_time.py": ("reads starts writes", "compiles kernels in a scratch folder"),
    "backend/declared.py": ("reads", "capabilities that a backend's file declares"),
    "backend/environments.py": ("reads starts writes", "makes, marks and removes virtual environments"),
    "backend/foreign.py": ("reads starts writes", "a backend under another interpreter, mapped files"),
    "backend/foreign_worker.py": ("reads", "memory of its process, from /proc"),
    "backend/locks.py": ("reads", "locks of environments"),
    "backend/registry.py": ("reads", "literals of a backend's file"),
    "backend/sources.py": ("reads", "the code that a backend is made of"),
    "cli/check_process.py": ("starts", "ends the process of a check that hangs"),
    "cli/console.py": ("reads writes", "tries output files before the work"),
    "cli/gate.py": ("reads writes", "summary, JUnit and JSON of a verdict"),
    "cli/profile.py": ("writes", "the trace"),
    "cli/report.py": ("reads starts writes", "the page; draws the worst failure in a process"),
    "cli/selftest.py": ("writes", "the page of the figures"),
    "cli/symptoms.py": ("reads", "what `doctor` looks for: drivers, programs, free space"),
    "cli/cache.py": ("reads writes", "removes stored references"),
    "cli/tune.py": ("reads starts", "runs a backend's tuning program"),
    "cli/watch.py": ("reads starts", "a backend's files, and checks of them"),
    "gate/accepted.py": ("reads", "accepted regressions"),
    "gate/arms.py": ("writes", "a scratch folder of references"),
    "gate/compiled.py": ("reads", "which revisions have kernels to compile"),
    "gate/recording.py": ("writes", "a recording for `--calibrate`"),
    "gate/touched.py": ("reads", "files of backends in two revisions"),
    "gate/worktree.py": ("starts writes", "git, and its worktrees"),
    "judge/reference_files.py": (
        "reads writes",
        "references of cases, and the cache of those of earlier runs",
    ),
    "measure/fingerprint.py": ("reads starts", "the machine, from /proc, git and nvidia-smi"),
    "measure/memory.py": ("reads writes", "the resident set's high water, in /proc"),
    "measure/threads.py": ("reads", "siblings of a CPU, from /sys"),
    "models/record.py": ("reads writes", "runs of models"),
    "models/texts.py": ("reads", "the standard library's sources, a text to train on"),
    "report/charts/one_case.py": ("writes", "charts"),
    "report/files.py": ("writes", "tables and charts of a report"),
    "report/frame.py": ("reads", "a stored frame"),
    "report/models.py": ("writes", "charts of models"),
    "report/page/render.py": ("reads writes", "the page and its templates"),
    "selftest/plan.py": ("starts", "parts side by side"),
    "sweep/executors.py": ("starts", "ends workers"),
    "sweep/fork_server.py": ("reads starts", "forks workers; its threads, from /proc"),
    "sweep/limits.py": ("reads starts writes", "a worker's memory, from /proc; ends it with its parent"),
    "sweep/reference_worker.py": ("reads writes", "whether a reference is stored; removes it"),
    "sweep/runner.py": ("writes", "a scratch folder of references"),
    "sweep/slots.py": ("reads", "whether a plug-in's file exists"),
    "sweep/starting.py": ("starts", "workers, and the server that forks them"),
    "sweep/store.py": ("reads writes", "results"),
    "sweep/suite.py": ("reads", "suites"),
}

# Beginnings of dotted names, as they are after imports are resolved.
CALLS = {
    "starts": (
        *(f"subprocess.{name}" for name in ("run", "Popen", "call", "check_", "getoutput")),
        *(f"os.{name}" for name in ("fork", "exec", "spawn", "posix_spawn", "system", "popen", "kill")),
        *("multiprocessing.", "concurrent.futures.ProcessPool", "asyncio.create_subprocess"),
    ),
    "writes": (
        *(f"tempfile.{name}" for name in ("Temp", "Named", "Spooled", "mk")),
        *(f"shutil.{name}" for name in ("copy", "move", "rmtree", "make_archive", "unpack_archive")),
        *(f"os.{name}" for name in ("remove", "unlink", "rename", "replace", "mkdir", "makedirs", "rmdir")),
        *(f"os.{name}" for name in ("fsync", "link", "symlink", "truncate", "ftruncate", "chmod", "utime")),
        *("numpy.save", "torch.save", "pickle.dump"),
    ),
    "reads": (
        *(f"os.{name}" for name in ("open", "listdir", "scandir", "walk", "stat", "lstat", "access")),
        *(f"os.path.{name}" for name in ("exists", "isfile", "isdir", "getsize", "getmtime", "samefile")),
        *("shutil.which", "shutil.disk_usage", "tempfile.gettempdir", "inspect.getsource", "linecache."),
        *("gzip.open", "lzma.open", "tarfile.open", "zipfile.ZipFile", "io.open", "os.fdopen"),
        *("numpy.load", "numpy.fromfile", "numpy.memmap", "torch.load", "pickle.load", "pandas.read_"),
    ),
}
METHODS = {
    "writes": {
        *("write_text", "write_bytes", "mkdir", "unlink", "rmdir", "touch", "chmod"),
        *("symlink_to", "hardlink_to", "tofile", "extractall", "savefig"),
        *("to_parquet", "to_csv", "to_feather", "export_chrome_trace"),
    },
    "reads": {
        *("read_text", "read_bytes", "exists", "is_file", "is_dir", "is_symlink", "stat", "lstat"),
        *("iterdir", "glob", "rglob", "samefile", "readlink"),
    },
}


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Name in the file -> the dotted name that it was imported as."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                names[name] = alias.name if alias.asname else name
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return names


def nodes_of_types(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.walk(tree):
        for field in ("annotation", "returns"):
            if getattr(node, field, None) is not None:
                yield from ast.walk(getattr(node, field))


def opening(call: ast.Call, position: int) -> set[str]:
    """What a call of `open` does, whose mode is the argument at `position`; nothing if it opens no file."""
    if {word.arg for word in call.keywords} - {"mode", "encoding", "errors", "newline", "buffering"}:
        return set()
    modes = [word.value for word in call.keywords if word.arg == "mode"] or call.args[position:]
    if not modes:
        return {"reads"}
    mode = modes[0].value if isinstance(modes[0], ast.Constant) else ""
    if not re.fullmatch("[rwaxbt+]+", str(mode)):
        return set()
    return {"writes"} if set(str(mode)) & set("wax+") else {"reads"}


def touches(text: str) -> set[str]:
    """Which of reads, writes and starts the code of a file does."""
    tree = ast.parse(text)
    names, types = imported_names(tree), set(nodes_of_types(tree))
    kinds = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute | ast.Name) and node not in types:
            first, dot, rest = ast.unparse(node).partition(".")
            dotted = names.get(first, "") + dot + rest
            kinds |= {kind for kind, beginnings in CALLS.items() if dotted.startswith(beginnings)}
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id == "open":
            kinds |= opening(node, 1)
        elif isinstance(node.func, ast.Attribute):
            method, is_module = node.func.attr, ast.unparse(node.func.value) in names
            kinds |= {kind for kind, methods in METHODS.items() if method in methods and not is_module}
            if method == "open" and not is_module:
                kinds |= opening(node, 0)
            # Path.rename and Path.replace take one argument; those of texts, values and frames more, or named ones.
            if (
                method in ("rename", "replace")
                and not is_module
                and len(node.args) == 1
                and not node.keywords
            ):
                kinds.add("writes")
    return kinds


def wrong_entries(house_files: list[house.Source], listed: dict[str, tuple[str, str]]) -> list[str]:
    """Where the list and the code differ."""
    code = {source.path: touches(source.text) for source in house_files}
    wrong = []
    for path in sorted(code.keys() | listed.keys()):
        kinds = set(listed[path][0].split()) if path in listed else set()
        if new := code.get(path, set()) - kinds:
            wrong.append(
                f"{path} {' and '.join(sorted(new))}: do it in a listed file, or list it with the reason"
            )
        if stale := kinds - code.get(path, set()):
            wrong.append(f"{path} no longer {' or '.join(sorted(stale))}: correct its entry")
    return wrong


def test_the_list_of_files_that_touch_the_disk_or_start_processes_is_true() -> None:
    assert wrong_entries(house.sources(), TOUCHES) == []


def test_every_entry_has_a_reason() -> None:
    assert all(reason for _, reason in TOUCHES.values())


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("open('x')", "reads"),
        ("open('x', 'a')", "writes"),
        ("with path.open('r+b') as file: ...", "writes"),
        ("path.open()", "reads"),
        ("bench.open(case=case)", ""),
        ("bench.open('naive')", ""),
        ("import gzip\ngzip.open('x')", "reads"),
        ("import webbrowser\nwebbrowser.open('x')", ""),
        ("path.read_text()", "reads"),
        ("path.parent.mkdir()", "writes"),
        ("path.rename(other)", "writes"),
        ("'text'.replace('a', 'b')", ""),
        ("frame.rename(columns=names)", ""),
        ("import os\nos.replace(a, b)", "writes"),
        ("import os as system\nsystem.fork()", "starts"),
        ("from subprocess import run\nrun(['ls'])", "starts"),
        ("import subprocess as sp\nstart = partial(sp.Popen, ['ls'])", "starts"),
        ("import subprocess\ndef f(p: subprocess.Popen[str]) -> None: ...", ""),
        ("def f():\n    import tempfile\n    tempfile.mkdtemp()", "writes"),
        ("import numpy as np\nnp.savez('x')\nnp.load('x')", "reads writes"),
        ("from concurrent.futures import ProcessPoolExecutor\nProcessPoolExecutor()", "starts"),
    ],
)
def test_what_touches_the_disk_or_starts_a_process_is_seen(text: str, kinds: str) -> None:
    assert touches(text) == set(kinds.split())


def test_an_unlisted_file_and_a_stale_entry_are_seen() -> None:
    files = [house.Source("judge/oracle.py", "open('x', 'w')"), house.Source("sweep/store.py", "open('x')")]
    listed = {"sweep/store.py": ("reads writes", "results"), "sweep/gone.py": ("reads", "suites")}
    assert [message.split(":")[0] for message in wrong_entries(files, listed)] == [
        "judge/oracle.py writes",
        "sweep/gone.py no longer reads",
        "sweep/store.py no longer writes",
    ]


PRINTERS = {
    *("print", "rich.print", "rich.console.Console", "typer.echo", "typer.secho"),
    *("sys.stdout.write", "sys.stderr.write"),
}


def prints(text: str) -> bool:
    """Whether the code of a file writes to the terminal."""
    tree = ast.parse(text)
    names = imported_names(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            first, dot, rest = ast.unparse(node.func).partition(".")
            if names.get(first, first) + dot + rest in PRINTERS:
                return True
    return False


def test_only_cli_and_report_print() -> None:
    assert [s.path for s in house.sources() if s.room not in PRINTING_ROOMS and prints(s.text)] == []


@pytest.mark.parametrize(
    ("text", "is_seen"),
    [
        ("def f():\n    print(1)", True),
        ("import sys\nsys.stderr.write('x')", True),
        ("from rich.console import Console\nConsole().print(1)", True),
        ("figure.print_png(file)", False),
        ("'print(1)'", False),
    ],
)
def test_printing_is_seen(text: str, is_seen: bool) -> None:
    assert prints(text) == is_seen
