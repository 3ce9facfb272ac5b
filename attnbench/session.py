"""The Python entry points: `run` a suite and list `backends`, as DataFrames."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.device import resolve_device
from attnbench.errors import AttnbenchError
from attnbench.measure import BLOCK_MS
from attnbench.models.run import MODEL_SUITES, run_models
from attnbench.report.frame import frame

DEVICES = ("cpu", "cuda")


def run(
    suite: str | os.PathLike[str],
    *,
    backends: Sequence[str | Callable[..., Any]] | None = None,
    device: str = "auto",
    out: str | os.PathLike[str] | None = None,
    resume: bool = False,
    seed: int = 0,
    distribution: str = "randn",
    contract: str | None = None,
    rounds: int = 10,
    block_ms: float = BLOCK_MS,
    case_seconds: float = 3.0,
    processes: int = 1,
    timeout_s: float = 300.0,
    memory_limit_bytes: int | None = None,
    dtypes: Sequence[str] | None = None,
    steps: int | None = None,
    tasks: Sequence[str] | None = None,
    progress: bool | None = None,
) -> pd.DataFrame:
    """Sweep a suite (a name or the path of a TOML file) and return the frame; a notebook shows it as one screen.

    `backends` are names, `path/to/file.py:function`, or callables (which run in this process); None takes all.
    `out` is the result folder; None keeps results in memory, and `resume` runs only what the folder lacks. The inputs
    follow from `seed` and `distribution`; plain functions are judged by `contract`. Each case is timed in `rounds`
    blocks of `block_ms`, in fewer if they exceed `case_seconds` per backend, and in `processes` fresh processes; it
    ends after `timeout_s`, or if its worker takes more than `memory_limit_bytes`. `progress` shows a line (None: in a
    notebook or a terminal).

    The suites "training" and "generation" give one row per run of a model (the fields of
    `attnbench.models.record.ModelRun`); only they take `dtypes`, `steps` and `tasks`, and of the rest `seed` and
    `resume`. Raises AttnbenchError.
    """
    folder = None if out is None else Path(out)
    of_models = {"dtypes": dtypes, "steps": steps, "tasks": tasks}
    if suite in MODEL_SUITES:
        of_models |= {"seed": seed, "resume": resume}
        records = run_and_draw_models(str(suite), backends=backends, device=device, out=folder, **of_models)
        return pd.DataFrame(records)
    if given := [name for name, value in of_models.items() if value is not None]:
        raise AttnbenchError(f"{', '.join(given)}: only the suites {' and '.join(MODEL_SUITES)} take it")
    from attnbench.backend.registry import entries
    from attnbench.report.notebook import ResultFrame
    from attnbench.report.progress import Silent, progress_here
    from attnbench.sweep.runner import run_sweep
    from attnbench.sweep.suite import load_suite

    device = resolve_device(device)
    chosen = list(backends) if backends is not None else [entry.name for entry in entries()]
    loaded = load_suite(os.fspath(suite))
    with Silent() if progress is False else progress_here() as tell:
        results = run_sweep(
            loaded.cases(device),
            chosen,
            device=device,
            out=folder,
            suite=loaded.name,
            resume=resume,
            seed=seed,
            distribution=distribution,
            contract=contract,
            rounds=rounds,
            block_ms=block_ms,
            case_seconds=case_seconds,
            processes=processes,
            timeout_s=timeout_s,
            memory_limit_bytes=memory_limit_bytes,
            on_event=tell,
        )
    return ResultFrame(frame(results) if folder is None else frame(folder))


def run_and_draw_models(suite: str, *, out: Path | None = None, **options: Any) -> list[dict[str, Any]]:
    """Run a model suite (see `run_models`); with `out`, draw its curves to OUT/SUITE.png too. The records."""
    records = run_models(suite, out=out, **options)
    if out is not None:
        from attnbench.report.models import draw_models

        draw_models(records, out / f"{suite}.png")
    return records


def backends() -> pd.DataFrame:
    """Every backend by name: available, reason, version, takes, capabilities, install, source.

    `takes` says by device ("cpu", "cuda") what it takes there (`attnbench.backend.taken.Taken`).
    """
    from attnbench.backend.registry import entries, resolve
    from attnbench.backend.taken import taken
    from attnbench.report.notebook import BackendFrame

    rows: list[dict[str, Any]] = []
    for entry in entries():
        row: dict[str, Any] = {"name": entry.name, "available": entry.available, "reason": entry.reason}
        row |= {"install": entry.install, "source": entry.source, "version": pd.NA, "capabilities": None}
        row["takes"] = {}
        if entry.available:
            try:
                backend = resolve(entry.name)
                row |= {"version": backend.version(), "capabilities": backend.capabilities}
                row["takes"] = {device: found for device in DEVICES if (found := taken(backend, device))}
            except AttnbenchError as error:
                # A library that cannot be loaded is listed with the reason, like a missing one.
                row |= {"available": False, "reason": str(error)}
        rows.append(row)
    columns = ["name", "available", "reason", "version", "takes", "capabilities", "install", "source"]
    return BackendFrame(rows, columns=columns)
