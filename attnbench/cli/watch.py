"""`attnbench check --watch`: the check again whenever the backend's file is saved, each time in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from attnbench.cli.console import complain, remark
from attnbench.errors import AttnbenchError, UnknownBackend

LOOK_EVERY_S = 0.3
PROGRAM = (sys.executable, "-c", "from attnbench.cli import main; main()")


def watch_backend(backend: str, device: str, check: Callable[[], int]) -> NoReturn:
    """Call `check` (its value is the exit code) now and after each change, until Ctrl-C."""
    folder = folder_of(backend)
    can_fork = _can_fork(device)
    while True:
        seen = _state(folder)
        _forked(check) if can_fork else _anew()
        remark(f"\nwaiting for a change of {backend.rpartition(':')[0] or backend} (Ctrl-C ends)")
        while _state(folder) == seen:
            time.sleep(LOOK_EVERY_S)
        while (now := _state(folder)) != seen:  # an editor may write more than once
            seen = now
            time.sleep(LOOK_EVERY_S)


def folder_of(backend: str) -> Path:
    """The folder whose Python files belong to a backend; UnknownBackend if there is none."""
    from attnbench.backend.registry import entries

    if ".py:" in backend:
        file = Path(backend.rpartition(":")[0])
    else:
        file = Path({entry.name: entry.source for entry in entries()}.get(backend, ""))
    if not file.is_file():
        raise UnknownBackend(f"{backend} has no file to watch; give path/to/file.py:function")
    return file.parent


def _state(folder: Path) -> dict[Path, tuple[int, int]]:
    """When each Python file was written, and its size."""
    state = {}
    for path in folder.glob("*.py"):
        try:
            found = path.stat()
        except OSError:  # an editor replaces it
            continue
        state[path] = (found.st_mtime_ns, found.st_size)
    return state


def _can_fork(device: str) -> bool:
    """Whether checks can be forked from this process, which has torch loaded: never with CUDA."""
    from attnbench.sweep.starting import CAN_FORK

    if not CAN_FORK:
        return False
    import torch

    if torch.version.cuda is not None and device != "cpu":
        return False
    import attnbench.conformance  # noqa: F401 - once, for all checks
    from attnbench.sweep import fork_server

    fork_server.load()
    return not fork_server.unfit()


def _forked(check: Callable[[], int]) -> None:
    child = os.fork()
    if child == 0:
        code = 2
        try:
            code = check()
        except AttnbenchError as error:
            complain(str(error))
        finally:
            sys.stdout.flush()
            os._exit(code)
    os.waitpid(child, 0)


def _anew() -> None:
    words = [word for word in sys.argv[1:] if word != "--watch"]
    subprocess.run([*PROGRAM, *words], check=False)
