"""The frame: one row per (case, backend), made of the raw records by the table of columns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.report.columns import COLUMNS, DTYPES, names_of
from attnbench.report.figures import Figures
from attnbench.sweep.result import Result
from attnbench.sweep.store import read_environments, read_results


def frame(
    results: Iterable[Result] | str | os.PathLike[str], environments: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """One row per (case, backend), units in the column names; missing figures are missing (NA), never 0.

    Takes results, a folder of results or a results.jsonl. `fwd_samples_ms` and `bwd_samples_ms` hold the raw
    samples (a list of rounds, each a list of milliseconds per call); `prepare_ms` and `errors` are JSON texts.
    `environments` (key -> fingerprint) gives the roofs; with a path they are read from environment.json.
    """
    if isinstance(results, (str, os.PathLike)):
        folder, environments = Path(results), environments or read_environments(results)
        results = read_results(folder)
    rows = [_row(result, environments or {}) for result in results]
    table = pd.DataFrame(rows, columns=[column.name for column in COLUMNS])
    return table.astype({column.name: DTYPES[column.kind] for column in COLUMNS if column.kind in DTYPES})


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The frame of a result folder, a results.jsonl, or a Parquet file that `attnbench report` wrote."""
    if Path(path).suffix == ".parquet":
        return pd.read_parquet(path)
    return frame(path)


def as_records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """The frame as JSON values, one object per row; missing figures are null, raw samples are left out."""
    records = json.loads(table.drop(columns=names_of("samples")).to_json(orient="records"))
    for record in records:
        record |= {name: json.loads(record[name]) for name in names_of("json")}
    return records


def _row(result: Result, environments: Mapping[str, Any]) -> dict[str, Any]:
    roofs = (environments.get(result.environment) or {}).get("roofs") or {}
    figures = Figures(result, roofs)
    return {column.name: column.of(figures) for column in COLUMNS}
