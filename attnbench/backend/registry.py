"""The registry: lists every backend without importing it, and loads one by its name.

Bundled backends are found by file name, third-party ones through the entry-point group `attnbench.backends`.
Names, requirements and install commands are read without importing a library: of a bundled file only the literals
`REQUIRES = {module: install command}`, `ENVIRONMENT = name` (the environment that may hold the library instead) and
`CUDA_BUILD` are parsed. The library is imported when the backend is loaded.
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

from attnbench.backend.declaration import as_backend, parse_declaration
from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.environments import find, how_to_make, importable, overridden
from attnbench.backend.interface import Backend
from attnbench.backend.sources import BACKENDS_PACKAGE, backends_in, bundled_folder
from attnbench.errors import AttnbenchError, BackendUnavailable, UnknownBackend, did_you_mean

GROUP = "attnbench.backends"
READ = ("REQUIRES", "ENVIRONMENT", "CUDA_BUILD")


@dataclass(frozen=True)
class Entry:
    """A backend by name. `available` is False if a requirement is missing; `install` is the command that adds it.

    `environment` names the Python environment of its library, if that is not this one.
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
    literals: dict[str, Any] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign):
            names = [t.id for t in node.targets if isinstance(t, ast.Name)]
            literals |= {n: ast.literal_eval(node.value) for n in names if n in READ}
    return literals


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
    except (SyntaxError, ValueError, OSError) as error:
        return Entry(name, str(path), False, f"the file cannot be read: {error}")
    environment = literals.get("ENVIRONMENT")
    if environment is not None and (missing is not None or overridden(environment, name)):
        return _in_environment(name, path, environment, bool(literals.get("CUDA_BUILD")), missing)
    if missing is not None:
        return Entry(name, str(path), False, *missing)
    return Entry(name, str(path))


def _in_environment(
    name: str, path: Path, environment: str, cuda: bool, missing: tuple[str, str] | None
) -> Entry:
    """The entry of a backend whose library is not installed here, but may be in its own environment."""
    candidate = find(environment, name)
    if candidate.usable and (candidate.cuda or not cuda or candidate.state == "given"):
        return Entry(name, str(path), environment=environment)
    state = "has no CUDA build" if candidate.usable else f"is {candidate.words}"
    here = f"{missing[0]} here, and " if missing else ""
    install = how_to_make(environment, cuda)
    return Entry(name, str(path), False, f"{here}the environment {environment} {state}", install, environment)


def _third_party() -> dict[str, list[EntryPoint]]:
    points: dict[str, list[EntryPoint]] = {}
    for point in entry_points(group=GROUP):
        # An editable install seen twice on the path is the same entry point, not a clash.
        if all(point.value != other.value for other in points.setdefault(point.name, [])):
            points[point.name].append(point)
    return points


def _owner(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else point.value


def entries(folder: Path | None = None) -> list[Entry]:
    """Every backend by name, with what it needs; imports nothing.

    `folder` is another folder of bundled backends (a worktree of a revision). A third-party name that is already
    taken is listed as unavailable, under `<distribution>:<name>`.
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
    """The package that imports the files of this folder (so that their relative imports work)."""
    if folder == bundled_folder():
        return BACKENDS_PACKAGE
    name = f"{BACKENDS_PACKAGE}_at_{abs(hash(str(folder.resolve()))):x}"
    if name not in sys.modules:
        package = ModuleType(name)
        package.__path__ = [str(folder)]
        sys.modules[name] = package
    return name


def _as_backend(value: Any, name: str, contract: str | None = None) -> Backend:
    if inspect.isclass(value) and issubclass(value, Backend):
        value = value()
    if isinstance(value, Backend):
        value.name = name
        return value
    if callable(value):
        return function_backend(value, name, contract)
    raise UnknownBackend(
        f"{name} is a {type(value).__name__}; give a Backend or a function fn(q, k, v, *, mask, scores, scale)"
    )


def function_backend(fn: Callable[..., Any], name: str = "", contract: str | None = None) -> FunctionBackend:
    """A plain function as a backend: what its file declares of it, and `contract`, one of CONTRACTS, if given."""
    backend = as_backend(fn, name)
    if inspect.isclass(fn):
        raise AttnbenchError(f"{backend.name} is a class; give an instance of it, or a function")
    try:
        # Of a torch module the signature says nothing, of its forward everything. A wrapper may add arguments.
        signature = inspect.signature(getattr(fn, "forward", fn), follow_wrapped=False)
        signature.bind(0, 0, 0, mask=0, scores=(), scale=0)
    except TypeError as error:
        raise AttnbenchError(
            f"{backend.name} cannot be called as fn(q, k, v, *, mask, scores, scale): {error}; wrap it in a function "
            "that can"
        ) from error
    except ValueError:
        pass  # it has no signature to look at
    return backend if contract is None else backend.declaring(**parse_declaration({"contract": contract}))


def _existing(spec_text: str) -> Path:
    path_text = spec_text.rpartition(":")[0]
    path = Path(path_text)
    if not path.is_file():
        raise UnknownBackend(f"no file {path_text!r}; give path/to/file.py:function")
    return path


def _load_file(spec_text: str, contract: str | None) -> Backend:
    path_text, _, attribute = spec_text.rpartition(":")
    path = _existing(spec_text)
    spec = importlib.util.spec_from_file_location(f"attnbench_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UnknownBackend(f"{path_text!r} is no Python file; give path/to/file.py:function")
    module = importlib.util.module_from_spec(spec)
    # Registered before it runs: dataclasses and Triton kernels look up their module by name.
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
    except Exception as error:
        raise BackendUnavailable(f"{name} cannot be loaded: {type(error).__name__}: {error}") from error


def find_named(name: str, folder: Path | None = None) -> Entry | None:
    """The entry of a backend's name, or None for a `path/to/file.py:function` whose file exists; imports nothing.

    Raises UnknownBackend (with the nearest name) and BackendUnavailable (with the reason and the install command).
    """
    if ".py:" in name:
        _existing(name)
        return None
    listed = {entry.name: entry for entry in entries(folder)}
    if name not in listed:
        installed = ", ".join(entry.name for entry in listed.values() if entry.available)
        near = did_you_mean(name, listed)
        raise UnknownBackend(
            f"no backend called {name!r}{near}; installed: {installed}; or give path/to/file.py:function"
        )
    entry = listed[name]
    if not entry.available:
        hint = f"; to have it: {entry.install}" if entry.install else ""
        raise BackendUnavailable(f"{name}: {entry.reason}{hint}")
    return entry


def resolve(name: str, folder: Path | None = None, contract: str | None = None) -> Backend:
    """Load a backend by name, or a function by `path/to/file.py:function`.

    Raises UnknownBackend (with the nearest name) and BackendUnavailable (with the reason and the install command).
    The backend's `name` is this name.
    """
    entry = find_named(name, folder)
    if entry is None:
        return _load_file(name, contract)
    folder = folder or bundled_folder()
    if name in backends_in(folder):
        module = _importing(name, lambda: importlib.import_module(f"{_folder_package(folder)}.{name}"))
        if not hasattr(module, "backend"):
            raise BackendUnavailable(
                f"{entry.source} defines no `backend`; end it with `backend = MyBackend()`"
            )
        return _as_backend(module.backend, name, contract)
    return _as_backend(_importing(name, _third_party()[name][0].load), name, contract)
