"""References as files: one .npz per reference, and those of earlier runs in the user's cache folder.

A cached reference is found by all that determines it: the numbers of the inputs, the case, the contract, the seed, the
kind of device, torch's version and the source code of the judge. A damaged file is made anew.
"""

from __future__ import annotations

import functools
import hashlib
import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from attnbench import problem
from attnbench.judge.reference import Reference, make_reference
from attnbench.problem.inputs import Inputs

LARGEST_CACHE = 2 << 30  # bytes; the references that were used last stay
DAMAGED = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile)


def save(path: Path, reference: Reference) -> None:
    """Write whole or not at all: a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            np.savez(file, allow_pickle=False, **reference.to_arrays())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: Path) -> Reference:
    """Read what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Reference.from_arrays({name: arrays[name] for name in arrays.files})


def cache_folder() -> Path | None:
    """ATTNBENCH_CACHE (None if it is empty), or attnbench/references in the user's cache folder."""
    folder = os.environ.get("ATTNBENCH_CACHE")
    if folder is not None:
        return Path(folder) if folder else None
    user = os.environ.get("XDG_CACHE_HOME")
    return (Path(user) if user else Path.home() / ".cache") / "attnbench" / "references"


def reference_of(inputs: Inputs, contract: str = "flash", seed: int = 0) -> Reference:
    """`make_reference`, or what it gave in an earlier run for the same numbers."""
    folder = cache_folder()
    if folder is None:
        return make_reference(inputs, contract, seed)
    path = folder / f"{_key(inputs, contract, seed)}.npz"
    try:
        reference = load(path)
        os.utime(path)  # used last
        return reference
    except DAMAGED:
        pass
    reference = make_reference(inputs, contract, seed)
    try:
        save(path, reference)
        if path.name.startswith("0"):  # one in sixteen
            _trim(folder)
    except OSError:
        pass  # a full disk, or a home that cannot be written, costs only the time that the cache would save
    return reference


def cached(folder: Path) -> list[Path]:
    """The cached references, the least recently used first."""
    return sorted(folder.glob("*.npz"), key=_used)


def _used(path: Path) -> float:
    return path.stat().st_mtime if path.exists() else 0.0


def _key(inputs: Inputs, contract: str, seed: int) -> str:
    case = inputs.case.to_json()
    text = f"{inputs.checksum()}|{case}|{contract}|{seed}|{inputs.device.type}|{_code()}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@functools.cache
def _code() -> str:
    """A digest of the code that computes references."""
    digest = hashlib.sha256(f"{torch.__version__}|{np.__version__}".encode())
    for folder in (Path(__file__).parent, Path(problem.__file__).parent):
        for file in sorted(folder.glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _trim(folder: Path) -> None:
    """Remove the least recently used references until the rest fit. Another process may do the same now."""
    sizes = [(path, path.stat().st_size) for path in cached(folder) if path.exists()]
    surplus = sum(size for _, size in sizes) - LARGEST_CACHE
    for path, size in sizes:
        if surplus <= 0:
            return
        path.unlink(missing_ok=True)
        surplus -= size
