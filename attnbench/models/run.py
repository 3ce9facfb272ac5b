"""Run a model suite, resuming what a folder holds; each record is on the disk as soon as it is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from attnbench.device import work_on
from attnbench.errors import AttnbenchError
from attnbench.models.record import ModelRun, append_record, read_records
from attnbench.statuses import PASSING

MODEL_SUITES = ("training", "generation")


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
    """Run a model suite; the records of its runs, those that `out` had before included.

    With `out`, each is on the disk as soon as it is known (`resume` runs only what is missing or failed there). `tell`
    gets each new record. Raises AttnbenchError.
    """
    import torch

    from attnbench.models import generation, training

    suites: dict[str, tuple[Callable[..., Iterator[ModelRun]], tuple[str, ...]]] = {
        "training": (training.run, training.TRAINED_DTYPES),
        "generation": (generation.run, generation.DECODED_DTYPES),
    }
    run_suite, suite_dtypes = suites[suite]
    device = work_on(device)
    if resume and out is None:
        raise AttnbenchError("resume needs out, the folder whose missing runs are to be done")
    before = [] if out is None else read_records(out)
    if before and not resume:
        raise AttnbenchError(
            f"{out} has {len(before)} runs already; resume (--resume), or take another folder"
        )
    unknown = sorted(set(dtypes or ()) - set(suite_dtypes))
    if unknown:
        raise AttnbenchError(f"{suite} takes dtype {' or '.join(suite_dtypes)}, not {unknown[0]}")
    # What failed may pass now, and is run again.
    records = [record for record in before if record["status"] not in PASSING]
    threads = torch.get_num_threads()
    # The model is small: more threads wait for each other longer than they compute.
    torch.set_num_threads(1)
    try:
        runs = run_suite(
            None if backends is None else list(backends),
            device=device,
            dtypes=tuple(dtypes or suite_dtypes),
            seed=seed,
            steps=steps,
            tasks=tasks,
            done=[ModelRun.from_json(record) for record in list(records)],
        )
        for run in runs:
            records.append(run.to_json())
            if out is not None:
                append_record(out, records[-1])
            tell(records[-1])
    finally:
        torch.set_num_threads(threads)
    return records
