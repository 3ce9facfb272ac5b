"""`attnbench run`: sweep a suite, or a grid given on the command line, and keep every result."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from attnbench.cli.console import out, plural, print_all, print_json, remark, size_bytes, texts, whole_numbers
from attnbench.cli.models import run_model_suite
from attnbench.errors import AttnbenchError
from attnbench.models.run import MODEL_SUITES

if TYPE_CHECKING:
    from attnbench.sweep.suite import Planned, Suite

MANY_CASES = 40  # beyond, the printed table is one line per backend
FAILED = ("wrong", "crashed", "error")
LIST = "a list: repeat it, or split at commas"


def run_suite(
    suite: str = typer.Argument(
        "",
        help="A suite's name (quick, core, masks, workloads; training, generation) or the path of a TOML file.",
    ),
    backend: list[str] | None = typer.Option(
        None, "--backend", "-b", help=f"Names, or path/to/file.py:function; {LIST} [every backend there is]."
    ),
    device: str = typer.Option("auto", "--device", help="auto (cuda if there), cpu, cuda or cuda:N."),
    to: Path | None = typer.Option(None, "--out", "-o", help="The folder of the results [runs/SUITE-TIME]."),
    resume: bool = typer.Option(False, "--resume", help="Run only what is missing in --out."),
    mask: list[str] | None = typer.Option(
        None, "--mask", help=f"Masks, such as 'causal & window(256, 0)'; {LIST}."
    ),
    seq: list[str] | None = typer.Option(None, "--seq", help=f"Sequence lengths, such as 512,4k; {LIST}."),
    q_len: list[str] | None = typer.Option(None, "--q-len", help=f"Query lengths, instead of --seq; {LIST}."),
    k_len: list[str] | None = typer.Option(None, "--k-len", help=f"Key lengths, instead of --seq; {LIST}."),
    heads: list[str] | None = typer.Option(
        None, "--heads", help=f"Heads: 8, or 32:8 (query:key heads); {LIST}."
    ),
    head_dim: list[str] | None = typer.Option(
        None, "--head-dim", help=f"Head dims: 64, or 192:128 (qk:v); {LIST}."
    ),
    dtype: list[str] | None = typer.Option(
        None, "--dtype", help=f"fp32, bf16, fp16; {LIST} [fp32 on CPU, bf16 on GPU]."
    ),
    direction: list[str] | None = typer.Option(None, "--direction", help=f"fwd, fwd_bwd; {LIST} [fwd]."),
    score: list[str] | None = typer.Option(
        None, "--score", help=f"Score changes, such as 'softcap(50)'; {LIST}."
    ),
    batch: list[str] | None = typer.Option(None, "--batch", help=f"Batch sizes; {LIST} [1]."),
    case: list[str] | None = typer.Option(
        None, "--case", help="Only cases whose id contains this text; may be repeated."
    ),
    limit: int | None = typer.Option(None, "--limit", min=1, help="Only the first so many cases."),
    rounds: int | None = typer.Option(None, "--rounds", min=1, help="Rounds of timing a case and backend."),
    processes: int = typer.Option(
        1, "--processes", min=1, help="Fresh worker processes a case and backend; the gate wants 4."
    ),
    seed: int = typer.Option(0, "--seed", min=0, help="The seed of the inputs."),
    timeout: float = typer.Option(
        300.0, "--timeout", min=0.1, help="Seconds a backend may spend on one case."
    ),
    memory_limit: str | None = typer.Option(
        None, "--memory-limit", help="What a worker may take, such as 8GiB [60 % of what is available]."
    ),
    python: list[str] | None = typer.Option(
        None,
        "--python",
        help="NAME=/path/to/python: the interpreter of a backend's environment; may be repeated.",
    ),
    strict: bool = typer.Option(False, "--strict", help="Exit 1 if any result is wrong, crashed or error."),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON instead of tables."),
) -> None:
    """Check and time every case of a suite on every backend. Results are on the disk as soon as they are known.

    Exit code 0 when the sweep completed, whatever the statuses (see --strict).

    Example: [bold]attnbench run quick --out runs/quick[/bold]

    Example: [bold]attnbench run --mask "causal & window(256, 0)" --seq 512,1024 --heads 8,32:8 --head-dim 64
    --backend naive,sdpa_flash,mine.py:attention[/bold]
    """
    from attnbench.backend import environments
    from attnbench.device import resolve_device

    for assignment in python or []:
        environments.use_python(assignment)
    grid = {
        "masks": texts(mask),
        "seq": whole_numbers(seq, "--seq"),
        "q_lens": whole_numbers(q_len, "--q-len"),
        "k_lens": whole_numbers(k_len, "--k-len"),
        "heads": texts(heads),
        "head_dims": texts(head_dim),
        "dtypes": texts(dtype),
        "directions": texts(direction),
        "scores": texts(score),
        "batches": whole_numbers(batch, "--batch"),
    }
    where = resolve_device(device)
    if suite in MODEL_SUITES:
        given = [name for name, values in grid.items() if values is not None and name != "dtypes"]
        given += [name for name, value in (("limit", limit), ("rounds", rounds)) if value is not None]
        if given:
            raise AttnbenchError(
                f"{suite} has its own models; leave out {', '.join(given)} (--case chooses tasks)"
            )
        counts = run_model_suite(
            suite,
            backends=texts(backend),
            device=where,
            to=to,
            resume=resume,
            dtypes=texts(dtype),
            seed=seed,
            tasks=case,
            as_json=as_json,
        )
        if strict and any(counts.get(status) for status in FAILED):
            raise typer.Exit(1)
        return
    # Of a suite, a direction chooses cases; it makes none.
    directions = texts(direction) if suite else None
    if suite:
        grid.pop("directions")
    found = chosen_suite(suite, {name: values for name, values in grid.items() if values is not None}, where)
    planned = chosen_cases(found.cases(where), case, limit, directions)
    folder = to or Path("runs") / f"{found.name or 'grid'}-{datetime.now():%Y%m%d-%H%M%S}"
    options: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    options |= {
        "seed": seed,
        "timeout_s": timeout,
        "processes": processes,
        "memory_limit_bytes": size_bytes(memory_limit, "--memory-limit"),
    }
    if resume and to is None:
        raise AttnbenchError("--resume needs --out: the folder whose missing results are to be run")
    counts = sweep(planned, texts(backend), where, folder, found.name, resume, options, as_json=as_json)
    if strict and any(counts.get(status) for status in FAILED):
        raise typer.Exit(1)


def chosen_suite(suite: str, grid: dict[str, Any], device: str) -> Suite:
    """The suite of that name or path, or the grid; SuiteError where both or neither are given."""
    from attnbench.sweep.suite import load_suite, suite_from_options

    if suite and grid:
        raise AttnbenchError(
            f"a suite ({suite}) and grid options ({', '.join(grid)}) were given; take one, or put the grid in a file"
        )
    if not suite and not grid:
        raise AttnbenchError(
            "nothing to run; name a suite (attnbench run quick) or give a grid (--mask causal --seq 512)"
        )
    return load_suite(suite) if suite else suite_from_options(**grid, device=device)


def chosen_cases(
    planned: Sequence[Planned],
    parts: list[str] | None,
    limit: int | None,
    directions: list[str] | None = None,
) -> list[Planned]:
    """The cases of these directions whose id contains any of `parts`, the first `limit` of them."""
    planned = [plan for plan in planned if not directions or plan.case.direction in directions]
    if not planned:
        raise AttnbenchError(f"no case with direction {' or '.join(directions or [])}; take fwd or fwd_bwd")
    kept = [plan for plan in planned if not parts or any(part in plan.case.id for part in parts)]
    if not kept:
        example = f"; an id is {planned[0].case.id}" if planned else ""
        raise AttnbenchError(f"no case of {len(planned)} has {' or '.join(parts or [])!r} in its id{example}")
    return kept[:limit]


def sweep(
    planned: list[Planned],
    backends: list[str] | None,
    device: str,
    folder: Path,
    name: str,
    resume: bool,
    options: dict[str, Any],
    *,
    as_json: bool,
) -> dict[str, int]:
    """Run it with a progress bar, then print the tables; the number of results by status."""
    from attnbench.backend.registry import entries
    from attnbench.cli.progress import Progress
    from attnbench.cli.report import as_records
    from attnbench.report.frame import frame
    from attnbench.report.terminal import result_tables
    from attnbench.sweep.runner import run_sweep

    names = backends or [entry.name for entry in entries()]
    sizes = f"{plural(len(planned), 'case')} on {plural(len(names), 'backend')}"
    remark(f"device {device_text(device)}: {name or 'grid'}, {sizes}, results in {folder}")
    with Progress() as progress:
        try:
            run_sweep(
                planned,
                names,
                device=device,
                out=folder,
                suite=name,
                resume=resume,
                on_event=progress,
                **options,
            )
        except KeyboardInterrupt:
            kept = progress.already_done + progress.rows_done
            remark(f"\n{plural(kept, 'result')} in {folder}; go on with --out {folder} --resume")
            raise
    table = frame(folder)
    if as_json:
        print_json(as_records(table))
    else:
        print_all(result_tables(table, cases=table["case"].nunique() <= MANY_CASES))
        out().print(f"\nresults in {folder}; charts and files: attnbench report {folder}", markup=False)
    return {str(status): int(count) for status, count in table["status"].value_counts().items()}


def device_text(device: str) -> str:
    """`cpu (AMD EPYC 7B13, 2 cores)`, `cuda (NVIDIA H200)`."""
    from attnbench.measure import fingerprint

    return f"{device} ({fingerprint(device)['machine']})"
