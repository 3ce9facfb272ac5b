"""The plan of one `attnbench run`: which cases on which backends, and where the results go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from attnbench.cli.console import plural
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from attnbench.cli.run_options import RunOptions
    from attnbench.sweep.suite import Planned, Suite


@dataclass(frozen=True)
class RunPlan:
    """The cases of a suite (its `name`; empty: a grid), the backends by name, the device and the result folder."""

    name: str
    cases: list[Planned]
    backends: list[str]
    device: str
    folder: Path

    def __str__(self) -> str:
        from attnbench.measure import fingerprint

        machine = f"{self.device} ({fingerprint(self.device)['machine']})"  # cuda (NVIDIA H200)
        sizes = f"{plural(len(self.cases), 'case')} on {plural(len(self.backends), 'backend')}"
        return f"device {machine}: {self.name or 'grid'}, {sizes}, results in {self.folder}"


def plan_of(options: RunOptions) -> RunPlan:
    """The plan that the options ask for; AttnbenchError if they contradict each other or leave no case."""
    from attnbench.backend.registry import entries

    suite = _suite(options)
    cases = _matching(suite.cases(options.device), options)
    backends = options.backends or [entry.name for entry in entries()]
    folder = options.folder_of(suite.name or "grid")
    return RunPlan(suite.name, cases, backends, options.device, folder)


def _suite(options: RunOptions) -> Suite:
    from attnbench.sweep.suite import load_suite, suite_from_options

    # With a suite, --direction chooses among its cases; it adds none.
    grid = {
        name: values for name, values in options.grid.items() if not (options.suite and name == "directions")
    }
    if options.suite and grid:
        raise AttnbenchError(
            f"a suite ({options.suite}) and grid options ({', '.join(grid)}) exclude each other; take one, or "
            "write the grid to a suite file"
        )
    if not options.suite and not grid:
        raise AttnbenchError(
            "nothing to run; name a suite (attnbench run quick) or give a grid (--mask causal --seq 512)"
        )
    return load_suite(options.suite) if options.suite else suite_from_options(**grid, device=options.device)


def _matching(planned: Sequence[Planned], options: RunOptions) -> list[Planned]:
    """The cases of the wanted directions and ids, the first `limit` of them."""
    directions = options.grid.get("directions") if options.suite else None
    planned = [plan for plan in planned if not directions or plan.case.direction in directions]
    if not planned:
        raise AttnbenchError(f"no case with direction {' or '.join(directions or [])}; take fwd or fwd_bwd")
    id_parts = options.id_parts
    matching = [plan for plan in planned if not id_parts or any(part in plan.case.id for part in id_parts)]
    if not matching:
        raise AttnbenchError(
            f"no case of {len(planned)} has {' or '.join(id_parts or [])!r} in its id; "
            f"an id is {planned[0].case.id}"
        )
    return matching[: options.limit]
