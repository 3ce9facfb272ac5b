"""The files of a report: Markdown, CSV, Parquet and PNG charts in one folder."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from attnbench.report.cells import csv_cell
from attnbench.report.columns import COLUMNS, Kind, names_of
from attnbench.report.markdown import markdown


def write_report(table: pd.DataFrame, folder: Path, *, charts: bool = True) -> Iterator[Path]:
    """Write everything into `folder` (made if missing); yield each path as soon as it is written."""
    folder.mkdir(parents=True, exist_ok=True)
    yield write_csv(table, folder / "results.csv")
    yield write_parquet(table, folder / "results.parquet")
    drawn = list(write_charts(table, folder)) if charts else []
    report = folder / "report.md"
    report.write_text(markdown(table, [path.name for path in drawn]), encoding="utf-8")
    yield report
    yield from drawn


def write_csv(table: pd.DataFrame, path: Path) -> Path:
    """One row per (case, backend), without the raw samples (they are in the Parquet file); no cell starts a formula."""
    cells = table.drop(columns=names_of("samples")).copy()
    for name in names_of("texts"):
        cells[name] = cells[name].map(json.dumps)
    for name in cells.columns:
        if not pd.api.types.is_numeric_dtype(cells[name]):
            cells[name] = cells[name].map(csv_cell, na_action="ignore")
    cells.to_csv(path, index=False)
    return path


def write_parquet(table: pd.DataFrame, path: Path) -> Path:
    """The whole frame; raw samples are columns of lists of lists."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[Kind, Any] = {
        "samples": pa.list_(pa.list_(pa.float64())),
        "json": pa.string(),
        "texts": pa.list_(pa.string()),
    }
    plain = table.drop(columns=names_of(*types)).iloc[:0]
    schema = pa.Table.from_pandas(plain, preserve_index=False).schema
    for column in COLUMNS:
        if column.kind in types:
            schema = schema.append(pa.field(column.name, types[column.kind]))
    pq.write_table(pa.Table.from_pandas(table, schema=schema, preserve_index=False), path)
    return path


def write_charts(table: pd.DataFrame, folder: Path) -> Iterator[Path]:
    """Every chart that the results allow, as PNG."""
    import matplotlib as mpl

    from attnbench.report.charts.curves import speed_and_memory
    from attnbench.report.charts.matrices import matrices
    from attnbench.report.charts.palette import STYLE

    if table.empty:
        return
    for draw in (speed_and_memory, matrices):
        for name, figure in draw(table):
            path = folder / f"{name}.png"
            with mpl.rc_context(STYLE):
                figure.savefig(path)
            yield path
