"""The Python entry points: `run` a suite and list `backends`, as DataFrames."""

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

    `backends` are names, `path/to/file.py:function`, or callables (which run in this process); None takes all.
    `out` is the result folder; None keeps results in memory. `options` go to `attnbench.sweep.run_sweep` (seed,
    timeout_s, resume, ...). The suites "training" and "generation" give one row per run of a model (the fields of
    `attnbench.models.record.ModelRun`); their options are those of `run_models`. Raises AttnbenchError.
    """
    folder = None if out is None else Path(out)
    if suite in MODEL_SUITES:
        records = run_and_draw_models(str(suite), backends=backends, device=device, out=folder, **options)
        return pd.DataFrame(records)
    from attnbench.backend.registry import entries
    from attnbench.sweep.runner import run_sweep
    from attnbench.sweep.suite import load_suite

    device = resolve_device(device)
    chosen = list(backends) if backends is not None else [entry.name for entry in entries()]
    loaded = load_suite(os.fspath(suite))
    results = run_sweep(loaded.cases(device), chosen, device=device, out=folder, suite=loaded.name, **options)
    return frame(results) if folder is None else frame(folder)


def run_and_draw_models(suite: str, *, out: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    """Run a model suite (see `run_models`); with `out`, draw its curves to OUT/SUITE.png too. The records."""
    records = run_models(suite, out=out, **options)
    if out is not None:
        from attnbench.report.models import draw_models

        draw_models(records, out / f"{suite}.png")
    return records


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
            except AttnbenchError as error:
                # A library that cannot be loaded is listed with the reason, like a missing one.
                row |= {"available": False, "reason": str(error)}
        rows.append(row)
    columns = ["name", "available", "reason", "version", "capabilities", "install", "source"]
    return pd.DataFrame(rows, columns=columns)
