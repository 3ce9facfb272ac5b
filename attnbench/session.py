"""What does Python code call instead of the command line? `run` a suite and list `backends`, as DataFrames."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.device import resolve_device
from attnbench.errors import AttnbenchError
from attnbench.models.run import MODEL_SUITES, run_models
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
    `attnbench.sweep.run_sweep` (seed, timeout_s, resume, ...). The suites "training" and "generation" give one row a
    run of a model (the fields of `attnbench.models.record.ModelRun`); their options are those of `run_models`. Raises
    AttnbenchError.
    """
    if suite in MODEL_SUITES:
        folder = None if out is None else Path(out)
        records = run_models(str(suite), backends=backends, device=device, out=folder, **options)
        if folder is not None:
            from attnbench.report.models import draw_models

            draw_models(records, folder / f"{suite}.png")
        return pd.DataFrame(records)
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
