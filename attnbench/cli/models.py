"""`attnbench run training` and `attnbench run generation`: what do backends do to a real model?"""

from __future__ import annotations

import importlib
from datetime import datetime
from pathlib import Path
from typing import Any

from attnbench.cli.console import out, print_all, print_json, remark
from attnbench.errors import AttnbenchError

MODEL_SUITES = ("training", "generation")


def run_model_suite(
    name: str,
    *,
    backends: list[str] | None,
    device: str,
    to: Path | None,
    resume: bool,
    dtypes: list[str] | None,
    seed: int,
    tasks: list[str] | None = None,
    as_json: bool = False,
) -> dict[str, int]:
    """Run a model suite, every run on the disk as soon as it is done; print its table; runs by status."""
    import torch

    from attnbench.layer.runs import ModelRun
    from attnbench.report.models import append_record, draw_models, model_table, read_records

    suite = importlib.import_module(f"attnbench_suites.models.{name}")
    if resume and to is None:
        raise AttnbenchError("--resume needs --out: the folder whose missing runs are to be done")
    folder = to or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    before = read_records(folder)
    if before and not resume:
        raise AttnbenchError(f"{folder} has {len(before)} runs already; give --resume, or another --out")
    unknown = sorted(set(dtypes or ()) - set(suite.DTYPES))
    if unknown:
        raise AttnbenchError(f"{name} takes --dtype {' or '.join(suite.DTYPES)}, not {unknown[0]}")
    remark(f"device {device}: {name}, results in {folder}")
    threads = torch.get_num_threads()
    # The model is small: more threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    records = list(before)
    try:
        done = [ModelRun.from_json(record) for record in before]
        options: dict[str, Any] = {"device": device, "seed": seed, "done": done, "tasks": tasks}
        for run in suite.run(backends, dtypes=dtypes or suite.DTYPES, **options):
            records.append(run.to_json())
            append_record(folder, records[-1])
            what = run.backend or run.role
            remark(f"  {run.task} {run.dtype} {what}: {run.status}{': ' if run.reason else ''}{run.reason}")
    finally:
        torch.set_num_threads(threads)
    chart = draw_models(records, folder / f"{name}.png")
    if as_json:
        print_json(records)
    else:
        print_all([model_table(records)])
        out().print(f"\nruns in {folder}, curves in {chart}", markup=False)
    counts: dict[str, int] = {}
    for record in records:
        counts[record["status"]] = counts.get(record["status"], 0) + 1
    return counts
