"""The Python environments of backends: made from shipped locks, or interpreters that the user names.

An environment counts only with its mark, which is written last: a half-made one is `unfinished`.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnbench.backend.locks import Lock, lock_of, locks
from attnbench.errors import EnvironmentUnavailable

OVERRIDES = "ATTNBENCH_PYTHON"  # name=path, joined by the system's path separator; inherited by workers
MARK = "attnbench-environment.json"
LAST_LINES = 15

Say = Callable[[str], None]


@dataclass(frozen=True)
class Environment:
    """An environment by name. `state`: ready, missing, unfinished, outdated, given (by the user) or by hand."""

    name: str
    state: str
    folder: Path | None = None
    python: Path | None = None
    python_version: str = ""
    cuda: bool = False
    packages: dict[str, str] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        return self.state in ("ready", "outdated", "given")

    @property
    def words(self) -> str:
        """The state as the end of a sentence."""
        return {"missing": "not made", "unfinished": "only half made", "by hand": "to be built by hand"}.get(
            self.state, self.state
        )

    @property
    def size_bytes(self) -> int:
        """Its size on disk."""
        if self.folder is None or not self.folder.is_dir():
            return 0
        return sum(
            f.lstat().st_blocks * 512 for f in self.folder.rglob("*") if not f.is_dir() or f.is_symlink()
        )


def root() -> Path:
    """The folder that holds the environments: ATTNBENCH_ENVS, or attnbench/envs in the user's cache folder."""
    if folder := os.environ.get("ATTNBENCH_ENVS"):
        return Path(folder).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "attnbench" / "envs"


def overrides() -> dict[str, Path]:
    """The interpreters that the user named: environment or backend name -> python."""
    pairs = [pair for pair in os.environ.get(OVERRIDES, "").split(os.pathsep) if pair]
    return {name: Path(path) for name, _, path in (pair.partition("=") for pair in pairs)}


def use_python(assignment: str) -> None:
    """Use `name=/path/to/python` in this process and its workers; raises if there is no such interpreter."""
    name, sign, path = assignment.partition("=")
    python = Path(path).expanduser()
    if not sign or not name or not path:
        raise EnvironmentUnavailable(f"--python takes NAME=/path/to/python, not {assignment!r}")
    if not (python.is_file() and os.access(python, os.X_OK)):
        raise EnvironmentUnavailable(f"no interpreter at {path!r} (given for {name})")
    # Not resolved: a virtual environment's python is a link, and following it leaves the environment.
    chosen = overrides() | {name: python.absolute()}
    os.environ[OVERRIDES] = os.pathsep.join(f"{n}={p}" for n, p in chosen.items())


def overridden(name: str, backend: str = "") -> bool:
    """Whether the user named an interpreter for this environment or backend."""
    return not overrides().keys().isdisjoint({name, backend} - {""})


def find(name: str, backend: str = "") -> Environment:
    """The environment as it is now; starts nothing. An interpreter that the user named comes first."""
    named = overrides()
    for key in (backend, name):
        if key and key in named:
            return Environment(name, "given", None, named[key])
    return made(name)


def made(name: str) -> Environment:
    """The environment in attnbench's own folder, whatever interpreter the user named."""
    lock = lock_of(name)
    folder = root() / name
    mark = _mark(folder)
    if mark is not None:
        whole = _python_in(folder).is_file()
        state = "unfinished" if not whole else "ready" if mark.get("lock") == lock.digest else "outdated"
        version, cuda = mark.get("python", ""), bool(mark.get("cuda"))
        return Environment(name, state, folder, _python_in(folder), version, cuda, mark.get("packages", {}))
    if folder.exists():
        return Environment(name, "unfinished", folder)
    return Environment(name, "by hand" if lock.by_hand else "missing", folder)


def every() -> list[Environment]:
    """The environment of every lock, and of every interpreter that the user named."""
    locked = [find(name) for name in locks()]
    names = {environment.name for environment in locked}
    return locked + [Environment(n, "given", None, p) for n, p in overrides().items() if n not in names]


def how_to_make(name: str, cuda: bool = False) -> str:
    """The command that makes the environment."""
    lock = locks().get(name)
    if lock is not None and lock.by_hand:
        return f"{lock.by_hand}, then attnbench run --python {name}=/path/to/python"
    return f"attnbench env create {name}" + (" --cuda" if cuda else "")


def create(
    name: str, *, cuda: bool = False, python: str = sys.executable, say: Say = lambda line: None
) -> Environment:
    """Make the environment from its lock, whole or not at all; a ready one stays as it is.

    `python` is the base interpreter. Raises EnvironmentUnavailable with pip's last lines.
    """
    lock = lock_of(name)
    if lock.by_hand:
        raise EnvironmentUnavailable(f"{name} cannot be installed from packages: {how_to_make(name)}")
    if cuda and not lock.has_cuda:
        raise EnvironmentUnavailable(f"the lock of {name} has no CUDA part; drop --cuda")
    place = root()
    place.mkdir(parents=True, exist_ok=True)
    with _alone(place / f".{name}.lock", say):
        before = made(name)
        if before.state == "ready" and before.cuda >= cuda:
            say(f"{name} is ready at {before.folder}")
            return before
        folder = place / name
        if folder.exists():
            say(f"removing {name}, which is {before.state}")
            _remove(folder)
        say(f"making {folder}")
        _venv(folder, python)
        inside = str(_python_in(folder))
        for step in lock.steps:
            if step.cuda and not cuda:
                continue
            say(f"installing {len(step.requirements)} packages: {', '.join(step.requirements[:4])}, ...")
            command = [inside, "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
            _checked([*command, *step.options, *step.requirements], f"installing {name}")
        if lock.modules:
            say(f"importing {', '.join(lock.modules)}")
            _checked(
                [inside, "-c", f"import {', '.join(lock.modules)}"], f"importing {', '.join(lock.modules)}"
            )
        _write_mark(folder, lock, cuda)
        say(f"{name} is ready")
        return made(name)


def importable(modules: tuple[str, ...]) -> bool:
    """Whether this interpreter has all of these modules; imports neither them nor their packages."""
    return all(_has_module(module) for module in modules)


def _has_module(name: str) -> bool:
    top, *inner = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    for part in inner:
        if spec is None or not spec.submodule_search_locations:
            return False
        # Not util.find_spec("a.b"): it would import a, which may not load here.
        spec = importlib.machinery.PathFinder.find_spec(part, list(spec.submodule_search_locations))
    return spec is not None


def remove(name: str) -> bool:
    """Remove the environment; returns whether there was one."""
    folder = root() / lock_of(name).name
    if not folder.exists():
        return False
    with _alone(root() / f".{name}.lock", lambda line: None):
        _remove(folder)
    return True


def _python_in(folder: Path) -> Path:
    return folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _mark(folder: Path) -> dict[str, Any] | None:
    try:
        mark = json.loads((folder / MARK).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) else None


def _write_mark(folder: Path, lock: Lock, cuda: bool) -> None:
    program = (
        "import importlib.metadata as m, json, platform;"
        "print(json.dumps([platform.python_version(), {d.name: d.version for d in m.distributions()}]))"
    )
    version, packages = json.loads(_checked([str(_python_in(folder)), "-c", program], "listing its packages"))
    record = {"lock": lock.digest, "python": version, "cuda": cuda, "packages": packages}
    unfinished = folder / f"{MARK}.part"
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(record, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MARK)


def _remove(folder: Path) -> None:
    # The mark goes first: a crash leaves an unfinished environment, not a ready one.
    (folder / MARK).unlink(missing_ok=True)
    shutil.rmtree(folder)


def _venv(folder: Path, python: str) -> None:
    if python == sys.executable:
        venv.EnvBuilder(with_pip=True, symlinks=os.name != "nt").create(folder)
    else:
        _checked([python, "-m", "venv", str(folder)], "making the virtual environment")


def _checked(command: list[str], doing: str) -> str:
    clean = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=clean, check=False)
    except OSError as error:
        raise EnvironmentUnavailable(f"{doing} failed: {error}") from error
    if done.returncode != 0:
        tail = "\n".join((done.stderr or done.stdout).strip().splitlines()[-LAST_LINES:])
        raise EnvironmentUnavailable(f"{doing} failed with status {done.returncode}:\n{tail}")
    return done.stdout


@contextlib.contextmanager
def _alone(path: Path, say: Say) -> Iterator[None]:
    """Hold the lock of an environment: two `create` at once take turns. The system releases it after a crash."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - Windows has no lock
        yield
        return
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("waiting for another process that is making it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
