"""What does Python code call instead of the command line? `run` a suite and list `backends`, as DataFrames."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.errors import AttnbenchError
from attnbench.report.frame import frame
from attnbench.report.models import MODEL_SUITES


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
    run of a model (the fields of `attnbench.layer.runs.ModelRun`); their options are those of `run_models`. Raises
    AttnbenchError.
    """
    if suite in MODEL_SUITES:
        folder = None if out is None else Path(out)
        return pd.DataFrame(run_models(str(suite), backends=backends, device=device, out=folder, **options))
    from attnbench.backend.registry import entries
    from attnbench.sweep.runner import run_sweep
    from attnbench.sweep.suite import load_suite

    where = resolve_device(device)
    chosen = list(backends) if backends is not None else [entry.name for entry in entries()]
    found = load_suite(os.fspath(suite))
    folder = None if out is None else Path(out)
    results = run_sweep(found.cases(where), chosen, device=where, out=folder, suite=found.name, **options)
    return frame(results) if folder is None else frame(folder)


def run_models(
    suite: str,
    *,
    backends: Sequence[str | Callable[..., Any]] | None = None,
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
    dtypes: Sequence[str] | None = None,
    seed: int = 0,
    steps: int | None = None,
    tasks: Sequence[str] | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda record: None,
) -> list[dict[str, Any]]:
    """Run a model suite; the records of its runs, those that were in `out` before included.

    With `out`, each is on the disk as soon as it is known (`resume` runs only what is missing there), and the
    curves are drawn to `out`/SUITE.png. `tell` is given each new record. Raises AttnbenchError.
    """
    import torch

    from attnbench.report.models import append_record, draw_models, read_records

    found = importlib.import_module(f"attnbench_suites.models.{suite}")
    where = resolve_device(device)
    if resume and out is None:
        raise AttnbenchError("to resume needs the folder (out) whose missing runs are to be done")
    before = [] if out is None else read_records(out)
    if before and not resume:
        raise AttnbenchError(
            f"{out} has {len(before)} runs already; resume (--resume), or give another folder"
        )
    unknown = sorted(set(dtypes or ()) - set(found.DTYPES))
    if unknown:
        raise AttnbenchError(f"{suite} takes dtype {' or '.join(found.DTYPES)}, not {unknown[0]}")
    records = list(before)
    threads = torch.get_num_threads()
    # The model is small: more threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    try:
        options: dict[str, Any] = {"device": where, "seed": seed, "steps": steps, "tasks": tasks}
        options |= {"done": [found.ModelRun.from_json(record) for record in before]}
        chosen = None if backends is None else list(backends)
        for run in found.run(chosen, dtypes=tuple(dtypes or found.DTYPES), **options):
            records.append(run.to_json())
            if out is not None:
                append_record(out, records[-1])
            tell(records[-1])
    finally:
        torch.set_num_threads(threads)
    if out is not None:
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
