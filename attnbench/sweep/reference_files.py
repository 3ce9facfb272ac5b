"""The files of right answers: one .npz per case, seed, distribution and contract, shared by all backends."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from attnbench.judge import Reference
from attnbench.problem import Case


def path_of(folder: Path, case: Case, seed: int, distribution: str, contract: str) -> Path:
    """The file of one right answer; its name covers everything that changes the answer."""
    text = f"{case.to_json()}|{seed}|{distribution}|{contract}"
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.npz"


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
