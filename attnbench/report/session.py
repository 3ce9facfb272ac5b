"""What does Python code call instead of the command line? `run` a suite and list `backends`, as DataFrames."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.errors import AttnbenchError
from attnbench.report.frame import frame


def run(
    suite: str | os.PathLike[str],
    *,
    backends: Sequence[str | Callable[..., Any]] | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Sweep a suite (a name or the path of a TOML file) and return the frame.

    `backends` are names, `path/to/file.py:function`, or callables (which run in this process); None takes every
    one there is. `out` is the folder of the results; None keeps them in memory. `options` go to
    `attnbench.sweep.run_sweep` (seed, timeout_s, resume, ...). Raises AttnbenchError.
    """
    from attnbench.backend.registry import entries
    from attnbench.sweep.runner import run_sweep
    from attnbench.sweep.suite import load_suite

    where = resolve_device(device)
    chosen = list(backends) if backends is not None else [entry.name for entry in entries()]
    found = load_suite(os.fspath(suite))
    folder = None if out is None else Path(out)
    results = run_sweep(found.cases(where), chosen, device=where, out=folder, suite=found.name, **options)
    return frame(results) if folder is None else frame(folder)


def backends() -> pd.DataFrame:
    """Every backend by name: available, reason, install, version, source, capabilities."""
    from attnbench.backend.registry import entries, resolve

    rows: list[dict[str, Any]] = []
    for entry in entries():
        row: dict[str, Any] = {"name": entry.name, "available": entry.available, "reason": entry.reason}
        row |= {"install": entry.install, "source": entry.source, "version": pd.NA, "capabilities": None}
        if entry.available:
            try:
                backend = resolve(entry.name)
                row |= {"version": backend.version(), "capabilities": backend.capabilities}
            except AttnbenchError as problem:
                # Found, but its library cannot be loaded: it is listed with the reason like any missing one.
                row |= {"available": False, "reason": str(problem)}
        rows.append(row)
    columns = ["name", "available", "reason", "version", "capabilities", "install", "source"]
    return pd.DataFrame(rows, columns=columns)


def resolve_device(device: str) -> str:
    """`auto` is cuda if there, else cpu; anything else is held against what is there."""
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind = device.split(":")[0]
    if kind not in ("cpu", "cuda"):
        raise AttnbenchError(f"no device {device!r}; take auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise AttnbenchError(
            f"no CUDA device for --device {device}; `attnbench doctor` says why, device cpu runs here"
        )
    if kind == "cuda" and ":" in device and not device.split(":")[1].isdigit():
        raise AttnbenchError(f"no device {device!r}; take auto, cpu, cuda or cuda:N")
    return device
