"""`attnbench run training` and `attnbench run generation`: run real models on backends and print their table."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from attnbench.cli.console import out, print_all, print_json, remark
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from attnbench.cli.run_options import RunOptions


def run_model_suite(options: RunOptions) -> Counter[str]:
    """Run a model suite, each run stored as soon as it is done; print the table; the number of runs by status."""
    from attnbench.report.models import model_table
    from attnbench.session import run_and_draw_models

    unusable = [name for name in options.grid if name != "dtypes"]
    unusable += ["limit"] if options.limit is not None else []
    unusable += ["rounds"] if "rounds" in options.of_sweep else []
    unusable += ["keep_failures"] if options.of_sweep.get("keep_failures") else []
    if unusable:
        raise AttnbenchError(
            f"{options.suite} has its own models; drop {', '.join(unusable)} (--case chooses tasks)"
        )
    folder = options.folder_of(options.suite)
    remark(f"device {options.device}: {options.suite}, results in {folder}")
    records = run_and_draw_models(
        options.suite,
        backends=options.backends,
        device=options.device,
        out=folder,
        resume=options.resume,
        dtypes=options.grid.get("dtypes"),
        seed=options.seed,
        tasks=options.id_parts,
        tell=_tell,
    )
    if options.as_json:
        print_json(records)
    else:
        print_all([model_table(records)])
        out().print(f"\nruns in {folder}, curves in {folder / f'{options.suite}.png'}", markup=False)
    return Counter(record["status"] for record in records)


def _tell(record: dict[str, Any]) -> None:
    name = record["backend"] or record["role"]
    reason = f": {record['reason']}" if record["reason"] else ""
    remark(f"  {record['task']} {record['dtype']} {name}: {record['status']}{reason}")
