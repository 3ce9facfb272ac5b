"""The options of `attnbench run`, declared for typer and parsed into a `RunOptions`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import typer

from attnbench.cli.console import size_bytes, texts, whole_numbers
from attnbench.cli.run import run
from attnbench.errors import AttnbenchError

LIST = "repeat, or split at commas"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The parsed command line of `attnbench run`; None is an option that was not given.

    grid        the grid options that were given, by the names of `sweep.suite.suite_from_options`
    id_parts    run only cases whose id contains one of these (of a model suite: only these tasks)
    of_sweep    further options of `sweep.runner.run_sweep`
    """

    suite: str
    grid: dict[str, Any]
    backends: list[str] | None
    id_parts: list[str] | None
    limit: int | None
    device: str
    out: Path | None
    resume: bool
    seed: int
    of_sweep: dict[str, Any]
    strict: bool
    as_json: bool
    details: bool = False
    report: bool = False

    def folder_of(self, name: str) -> Path:
        """--out, or a new folder named after the suite and the time."""
        return self.out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"


def run_suite(
    suite: str = typer.Argument(
        "",
        help="A suite's name (quick, core, masks, workloads; training, generation) or the path of a TOML file.",
    ),
    backend: list[str] | None = typer.Option(
        None, "--backend", "-b", help=f"Names, or path/to/file.py:function; {LIST} (default: all)."
    ),
    device: str = typer.Option("auto", "--device", help="auto (cuda if present), cpu, cuda or cuda:N."),
    out: Path | None = typer.Option(
        None, "--out", "-o", help="The result folder (default: runs/SUITE-TIME)."
    ),
    resume: bool = typer.Option(
        False,
        "--resume",
        help="Run only the results that --out lacks, and again what crashed, raised, took too long or was unavailable.",
    ),
    keep_failures: bool = typer.Option(
        False, "--keep-failures", help="With --resume: keep such rows as they are."
    ),
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
        None, "--dtype", help=f"fp32, bf16, fp16; {LIST} (default: fp32 on a CPU, bf16 on a GPU)."
    ),
    direction: list[str] | None = typer.Option(
        None, "--direction", help=f"fwd, fwd_bwd; {LIST} (default: fwd)."
    ),
    score: list[str] | None = typer.Option(
        None, "--score", help=f"Score changes, such as 'softcap(50)'; {LIST}."
    ),
    batch: list[str] | None = typer.Option(None, "--batch", help=f"Batch sizes; {LIST} (default: 1)."),
    case: list[str] | None = typer.Option(
        None, "--case", help="Only cases whose id contains this text; repeat for more."
    ),
    limit: int | None = typer.Option(None, "--limit", min=1, metavar="N", help="Only the first N cases."),
    rounds: int | None = typer.Option(
        None, "--rounds", min=1, metavar="N", help="Timing rounds per case and backend (default: 10)."
    ),
    processes: int = typer.Option(
        1,
        "--processes",
        min=1,
        metavar="N",
        help="Fresh worker processes per case and backend; `attnbench gate` needs 4.",
    ),
    seed: int = typer.Option(0, "--seed", min=0, metavar="N", help="The seed of the inputs."),
    timeout: float = typer.Option(
        300.0, "--timeout", min=0.1, metavar="N", help="Seconds per case and backend."
    ),
    memory_limit: str | None = typer.Option(
        None, "--memory-limit", help="Memory of a worker, such as 8GiB (default: 60 % of what is available)."
    ),
    python: list[str] | None = typer.Option(
        None,
        "--python",
        help="NAME=/path/to/python, the interpreter of a backend's environment; repeat for more.",
    ),
    strict: bool = typer.Option(False, "--strict", help="Exit 1 if any result is wrong, crashed or error."),
    details: bool = typer.Option(False, "--details", help="Print the table of every case, too."),
    report: bool = typer.Option(
        False, "--report", help="Write tables and charts to OUT/report and a page to OUT/report.html, too."
    ),
    as_json: bool = typer.Option(False, "--json", help="Print the figures as JSON instead of tables."),
) -> None:
    """Check and time every case of a suite on every backend. Each result is on the disk as soon as it is known.

    Exit code 0 if the sweep completed, whatever the statuses (see --strict).

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
    of_sweep: dict[str, Any] = {
        "rounds": rounds,
        "timeout_s": timeout,
        "processes": processes,
        "keep_failures": keep_failures,
        "memory_limit_bytes": size_bytes(memory_limit, "--memory-limit"),
    }
    if keep_failures and not resume:
        raise AttnbenchError("--keep-failures needs --resume, which runs failed rows again")
    if resume and out is None:
        raise AttnbenchError("--resume needs --out, the folder whose missing results are to be run")
    run(
        RunOptions(
            suite=suite,
            grid={name: values for name, values in grid.items() if values is not None},
            backends=texts(backend),
            id_parts=case,
            limit=limit,
            device=resolve_device(device),
            out=out,
            resume=resume,
            seed=seed,
            of_sweep={name: value for name, value in of_sweep.items() if value is not None},
            strict=strict,
            as_json=as_json,
            details=details,
            report=report,
        )
    )
