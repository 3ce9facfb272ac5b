"""What do the raw records say? One row per (case, backend); every derived figure is computed here, nowhere else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnbench.sweep.result import Result
from attnbench.sweep.store import read_environments, read_results

LOW, HIGH = 0.1, 0.9  # the quantiles drawn as a chart's band
PASSES = ("fwd", "bwd")
TEXTS = (
    (
        "case",
        "backend",
        "backend_version",
        "kernel",
        "status",
        "reason",
        "direction",
        "mask",
        "scores",
        "dtype",
    )
    + ("layout", "suite", "group", "contract", "distribution", "device", "machine", "commit", "started_at")
    + ("environment", "clock")
)
WHOLES = (
    ("batch", "q_len", "k_len", "q_heads", "kv_heads", "head_dim", "v_dim", "pairs", "seed")
    + ("peak_bytes", "fwd_peak_bytes", "bwd_peak_bytes", "saved_bytes", "least_peak_bytes")
    + ("fwd_flops", "bwd_flops", "fwd_least_bytes", "bwd_least_bytes", "fwd_samples", "bwd_samples")
)
REALS = (
    ("scale", "fwd_median_ms", "bwd_median_ms", "fwd_low_ms", "fwd_high_ms", "bwd_low_ms", "bwd_high_ms")
    + (
        "fwd_min_ms",
        "bwd_min_ms",
        "fwd_tflops",
        "bwd_tflops",
        "fwd_roof_share",
        "bwd_roof_share",
        "roof_share",
    )
    + ("fwd_warm_l2_ms", "bwd_warm_l2_ms", "fwd_graph_ms", "bwd_graph_ms")
    + ("peak_over_least", "error_over_budget", "prepare_total_ms")
)
OTHER_CLOCKS = {
    "warm_l2": "cuda_events_warm_l2",
    "graph": "cuda_graph_rotating",
}  # a column's word: the clock
LISTS = ("fwd_samples_ms", "bwd_samples_ms", "prepare_ms", "errors", "notes")
COLUMNS = [*TEXTS, *WHOLES, *REALS, *LISTS]


def frame(
    results: Iterable[Result] | str | os.PathLike[str], environments: Mapping[str, Any] | None = None
) -> pd.DataFrame:
    """One row per (case, backend), units in the column names; missing figures are missing (NA), never 0.

    Takes results, a folder of results or a results.jsonl. `fwd_samples_ms` and `bwd_samples_ms` hold the raw
    samples (a list of rounds, each a list of milliseconds a call); `prepare_ms` and `errors` are JSON texts.
    `environments` (key -> fingerprint) gives the roofs; with a path they are read from environment.json.
    """
    if isinstance(results, (str, os.PathLike)):
        folder, environments = Path(results), environments or read_environments(results)
        results = read_results(folder)
    rows = [_row(result, environments or {}) for result in results]
    table = pd.DataFrame(rows, columns=COLUMNS)
    types = dict.fromkeys(TEXTS, "str") | dict.fromkeys(WHOLES, "Int64") | dict.fromkeys(REALS, "float64")
    return table.astype({**types, "notes": "object"})


def load(path: str | os.PathLike[str]) -> pd.DataFrame:
    """The frame of a result folder, a results.jsonl, or a Parquet file that `attnbench report` wrote."""
    if Path(path).suffix == ".parquet":
        return pd.read_parquet(path)
    return frame(path)


def _row(result: Result, environments: Mapping[str, Any]) -> dict[str, Any]:
    case, memory = result.case, result.memory_bytes
    peak = _peak_bytes(result)
    row: dict[str, Any] = {
        "case": result.case_id,
        "scores": ", ".join(map(str, case.get("scores") or ())),
        "peak_bytes": peak,
        "fwd_peak_bytes": memory.get("fwd_peak"),
        "bwd_peak_bytes": memory.get("bwd_peak"),
        "saved_bytes": memory.get("saved"),
        "peak_over_least": _ratio(peak, result.least_peak_bytes),
        "prepare_total_ms": math.fsum(result.prepare_ms.values()) if result.prepare_ms else None,
        "prepare_ms": json.dumps(result.prepare_ms),
        "errors": json.dumps(result.errors),
        "notes": [_encodable(note) for note in result.notes],
    }
    for name in (
        "direction",
        "mask",
        "dtype",
        "layout",
        "scale",
        "batch",
        "q_len",
        "k_len",
        "head_dim",
        "v_dim",
    ):
        row[name] = case.get(name)
    row["q_heads"], row["kv_heads"] = case.get("q_heads"), case.get("kv_heads") or case.get("q_heads")
    row["v_dim"] = row["v_dim"] or row["head_dim"]
    for name in COLUMNS:
        if name not in row and hasattr(result, name):
            row[name] = getattr(result, name)
    row |= {name: _encodable(row[name]) for name in TEXTS if row[name] is not None}
    roofs = (environments.get(result.environment) or {}).get("roofs") or {}
    least_ms = {name: roof_ms(result, name, roofs) for name in PASSES}
    for name in PASSES:
        row |= _times(name, result, least_ms[name])
    # The share of the whole case: the passes that were timed, against the roofs of the same passes.
    timed = [name for name in PASSES if row[f"{name}_median_ms"] is not None]
    spent_ms = math.fsum(row[f"{name}_median_ms"] for name in timed)
    known = timed and all(least_ms[name] is not None for name in timed)
    row["roof_share"] = (
        _ratio(math.fsum(least_ms[name] or 0.0 for name in timed), spent_ms) if known else None
    )
    return row


def _encodable(text: Any) -> str:
    # JSON may carry half of a surrogate pair, which no file can hold.
    return str(text).encode("utf-8", "replace").decode("utf-8")


def _times(name: str, result: Result, least_ms: float | None) -> dict[str, Any]:
    rounds = result.samples_ms.get(name) or []
    samples = np.asarray([ms for one in rounds for ms in one], dtype=float)
    some = samples.size > 0
    low, median, high = np.quantile(samples, (LOW, 0.5, HIGH)).tolist() if some else (None, None, None)
    flops = result.flops.get(name)
    return {
        f"{name}_samples_ms": rounds,
        f"{name}_samples": int(samples.size) if some else None,
        f"{name}_median_ms": median,
        f"{name}_low_ms": low,
        f"{name}_high_ms": high,
        f"{name}_min_ms": float(samples.min()) if some else None,
        f"{name}_flops": flops,
        f"{name}_least_bytes": result.least_bytes.get(name),
        **{f"{name}_{w}_ms": result.other_clocks_ms.get(c, {}).get(name) for w, c in OTHER_CLOCKS.items()},
        f"{name}_tflops": _ratio(flops, median and median * 1e9),
        f"{name}_roof_share": _ratio(least_ms, median),
    }


def _peak_bytes(result: Result) -> int | None:
    # The forward's peak alone would flatter a case whose backward was not measured.
    needed = ("fwd_peak", "bwd_peak") if result.case.get("direction") == "fwd_bwd" else ("fwd_peak",)
    found = [result.memory_bytes.get(name) for name in needed]
    return max(value for value in found if value is not None) if None not in found else None


def _ratio(above: float | None, below: float | None) -> float | None:
    return None if above is None or not below else above / below


def roof_ms(result: Result, name: str, roofs: Mapping[str, Any]) -> float | None:
    """The least milliseconds that the measured roofs allow a pass ("fwd" or "bwd"); None where a roof is unknown.

    The binding one of: the matrix product rate at the case's dtype, the copy bandwidth, the exponentials' rate.
    """
    matrix = (roofs.get("matmul_flops_per_s") or {}).get(result.case.get("dtype"))
    bounds = [
        _ratio(result.flops.get(name), matrix),
        _ratio(result.least_bytes.get(name), roofs.get("copy_bytes_per_s")),
    ]
    if any(bound is None for bound in bounds):
        return None
    bounds.append(_ratio(result.pairs, roofs.get("exps_per_s")))
    return 1e3 * max(bound for bound in bounds if bound is not None)
