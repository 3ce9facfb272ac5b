"""Which backends are there, and how is one reached by its name?

Bundled backends are found by file name, third-party ones through the entry-point group `attnbench.backends`.
Names, requirements and install commands are read without importing a backend's library: of a bundled file only
the literals `REQUIRES = {module: install command}` and `ENVIRONMENT = name` (where the library may live instead) are
parsed. The library is imported when the backend is loaded.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from attnbench.backend.environments import find, how_to_make, importable, overridden
from attnbench.backend.interface import CONTRACTS, Backend, Capabilities, FunctionBackend
from attnbench.backend.sources import BUNDLED, backends_in, bundled_folder
from attnbench.errors import AttnbenchError, BackendUnavailable, UnknownBackend, did_you_mean

GROUP = "attnbench.backends"
READ = ("REQUIRES", "ENVIRONMENT", "CUDA_BUILD")


@dataclass(frozen=True)
class Entry:
    """A backend by name. `available` is False where a requirement is missing; `install` would make it so.

    `environment` names the Python environment that its library lives in, where that is not this one.
    """

    name: str
    source: str
    available: bool = True
    reason: str = ""
    install: str = ""
    environment: str = ""


def _literals(path: Path) -> dict[str, Any]:
    """The literals REQUIRES, ENVIRONMENT and CUDA_BUILD of a file, read without running it."""
    tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
    found: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            found |= {n: ast.literal_eval(node.value) for n in names if n in READ}
    return found


def _requirements(path: Path) -> dict[str, str]:
    return dict(_literals(path).get("REQUIRES", {}))


def _missing(requirements: dict[str, str]) -> tuple[str, str] | None:
    for module, install in requirements.items():
        if not importable((module,)):
            return f"{module} is not installed", install
    return None


def _bundled_entry(name: str, path: Path) -> Entry:
    try:
        literals = _literals(path)
        missing = _missing(dict(literals.get("REQUIRES", {})))
    except (SyntaxError, ValueError, OSError) as problem:
        return Entry(name, str(path), False, f"the file cannot be read: {problem}")
    home = literals.get("ENVIRONMENT")
    if home is not None and (missing is not None or overridden(home, name)):
        return _in_environment(name, path, home, bool(literals.get("CUDA_BUILD")), missing)
    if missing is not None:
        return Entry(name, str(path), False, *missing)
    return Entry(name, str(path))


def _in_environment(name: str, path: Path, home: str, cuda: bool, missing: tuple[str, str] | None) -> Entry:
    """The entry of a backend whose library is not here, but may be in an environment of its own."""
    there = find(home, name)
    if there.usable and (there.cuda or not cuda or there.state == "given"):
        return Entry(name, str(path), environment=home)
    state = "has no CUDA build" if there.usable else f"is {there.words}"
    here = f"{missing[0]} here, and " if missing else ""
    install = how_to_make(home, cuda)
    return Entry(name, str(path), False, f"{here}the environment {home} {state}", install, home)


def _third_party() -> dict[str, list[EntryPoint]]:
    found: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        # An editable install seen twice on the path is the same entry point, not a clash.
        if all(point.value != other.value for other in found.setdefault(point.name, [])):
            found[point.name].append(point)
    return found


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def entries(folder: Path | None = None) -> list[Entry]:
    """Every backend by name, with what it would need; nothing is imported.

    `folder` takes the bundled backends from another folder (a worktree of a revision). A third-party name that
    is taken already is listed as unavailable under `<distribution>:<name>`; the one that has the name stays.
    """
    listed = {
        name: _bundled_entry(name, path) for name, path in backends_in(folder or bundled_folder()).items()
    }
    for name, points in sorted(_third_party().items()):
        for point in points:
            owner = _owner(point)
            if name not in listed:
                listed[name] = Entry(name, f"{owner} ({point.value})")
            else:
                reason = (
                    f"the name {name!r} is taken by {listed[name].source}; rename the entry point of {owner}"
                )
                listed[f"{owner.split()[0]}:{name}"] = Entry(
                    f"{owner.split()[0]}:{name}", owner, False, reason
                )
    return list(listed.values())


def _folder_package(folder: Path) -> str:
    """The package through which the files of this folder are imported (relative imports work in it)."""
    if folder == bundled_folder():
        return BUNDLED
    name = f"{BUNDLED}_at_{abs(hash(str(folder.resolve()))):x}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _as_backend(found: Any, name: str, contract: str | None = None) -> Backend:
    if inspect.isclass(found) and issubclass(found, Backend):
        found = found()
    if isinstance(found, Backend):
        found.name = name
        return found
    if callable(found):
        return function_backend(found, name, contract)
    raise UnknownBackend(
        f"{name} is a {type(found).__name__}; give a Backend or a function fn(q, k, v, *, mask, scores, scale)"
    )


def function_backend(fn: Callable[..., Any], name: str = "", contract: str | None = None) -> FunctionBackend:
    """A plain function as a backend, judged under the FLASH contract unless told another of CONTRACTS."""
    known = {each: each for each in CONTRACTS}
    if contract not in (None, *known):
        raise AttnbenchError(f"no contract {contract!r}; take one of {', '.join(CONTRACTS)}")
    name = name or getattr(fn, "__name__", type(fn).__name__)
    return FunctionBackend(fn, name, Capabilities(contract=known[contract or "flash"]))  # type: ignore[index]


def _load_file(spec_text: str, contract: str | None) -> Backend:
    path_text, _, attribute = spec_text.rpartition(":")
    path = Path(path_text)
    if not path.is_file():
        raise UnknownBackend(f"no file {path_text!r}; give path/to/file.py:function")
    spec = importlib.util.spec_from_file_location(f"attnbench_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UnknownBackend(f"{path_text!r} is no Python file; give path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and triton kernels look their module up by name.
    sys.modules[spec.name] = module
    _importing(spec_text, lambda: spec.loader.exec_module(module))  # type: ignore[union-attr]
    if not hasattr(module, attribute):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        near = did_you_mean(attribute, public)
        has = ", ".join(public) or "no function"
        raise UnknownBackend(f"{path_text} has no {attribute!r}{near}; it has {has}")
    return _as_backend(getattr(module, attribute), spec_text, contract)


def _importing(name: str, load: Callable[[], Any]) -> Any:
    try:
        return load()
    except AttnbenchError:
        raise
    except Exception as problem:
        raise BackendUnavailable(f"{name} cannot be loaded: {type(problem).__name__}: {problem}") from problem


def resolve(name: str, folder: Path | None = None, contract: str | None = None) -> Backend:
    """Load a backend by name, or a function by `path/to/file.py:function`.

    Raises UnknownBackend (with what is near) and BackendUnavailable (with the reason and the install command).
    The backend's `name` is the name as given.
    """
    if ".py:" in name:
        return _load_file(name, contract)
    folder = folder or bundled_folder()
    known = {entry.name: entry for entry in entries(folder)}
    if name not in known:
        installed = ", ".join(entry.name for entry in known.values() if entry.available)
        near = did_you_mean(name, known)
        raise UnknownBackend(
            f"no backend called {name!r}{near}; installed: {installed}; or give path/to/file.py:function"
        )
    entry = known[name]
    if not entry.available:
        hint = f"; to have it: {entry.install}" if entry.install else ""
        raise BackendUnavailable(f"{name}: {entry.reason}{hint}")
    if name in backends_in(folder):
        module = _importing(name, lambda: importlib.import_module(f"{_folder_package(folder)}.{name}"))
        if not hasattr(module, "backend"):
            raise BackendUnavailable(
                f"{entry.source} defines no `backend`; end it with `backend = MyBackend()`"
            )
        return _as_backend(module.backend, name, contract)
    return _as_backend(_importing(name, _third_party()[name][0].load), name, contract)
