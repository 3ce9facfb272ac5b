"""`attnbench run training` and `attnbench run generation`: what do backends do to a real model?"""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

from attnbench.cli.console import out, print_all, print_json, remark
from attnbench.errors import AttnbenchError


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
    from attnbench.models.run import run_models
    from attnbench.report.models import draw_models, model_table

    if resume and to is None:
        raise AttnbenchError("--resume needs --out: the folder whose missing runs are to be done")
    folder = to or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    remark(f"device {device}: {name}, results in {folder}")
    options: dict[str, Any] = {"out": folder, "resume": resume, "dtypes": dtypes, "seed": seed}
    records = run_models(name, backends=backends, device=device, tasks=tasks, tell=_remark, **options)
    draw_models(records, folder / f"{name}.png")
    if as_json:
        print_json(records)
    else:
        print_all([model_table(records)])
        out().print(f"\nruns in {folder}, curves in {folder / f'{name}.png'}", markup=False)
    return dict(Counter(record["status"] for record in records))


def _remark(record: dict[str, Any]) -> None:
    what = record["backend"] or record["role"]
    reason = f": {record['reason']}" if record["reason"] else ""
    remark(f"  {record['task']} {record['dtype']} {what}: {record['status']}{reason}")
