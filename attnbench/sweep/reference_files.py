"""Where is the right answer of a case kept? One .npz a question, computed once and read by every backend."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np

from attnbench.judge import Reference
from attnbench.problem import Case


def path_of(folder: Path, case: Case, seed: int, distribution: str, contract: str) -> Path:
    """The file of one question; everything that changes the answer is in its name."""
    asked = f"{case.to_json()}|{seed}|{distribution}|{contract}"
    return folder / f"{hashlib.sha256(asked.encode()).hexdigest()[:24]}.npz"


def save(path: Path, reference: Reference) -> None:
    """Write whole or not at all: a reader never sees half of it."""
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
