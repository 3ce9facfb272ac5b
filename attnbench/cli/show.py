"""`attnbench show`: draw where a kernel is wrong: mask, weights, tiles and errors of one case."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from attnbench.cli.check import case_of
from attnbench.cli.console import out, remark, require_backend
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from attnbench.problem import Case


def show_case(
    case: str = typer.Argument(..., help="A case as JSON (a failed check prints it), or its id with --from."),
    backend: str = typer.Option(
        ..., "--backend", "-b", help="A backend's name, or path/to/file.py:function."
    ),
    to: Path = typer.Option(Path("pictures"), "--out", "-o", help="The folder for the pictures."),
    results: Path | None = typer.Option(
        None, "--from", help="The result folder that holds the case of that id."
    ),
    head: list[int] | None = typer.Option(
        None, "--head", help="Draw the weights of these heads (default: the worst and up to three others)."
    ),
    block: int = typer.Option(64, "--block", min=1, help="Tokens per side of a tile in the map of tiles."),
    device: str = typer.Option("auto", "--device", help="auto (cuda if present), cpu, cuda or cuda:N."),
    seed: int = typer.Option(0, "--seed", min=0, help="The seed of the inputs."),
    distribution: str = typer.Option("randn", "--distribution", help="The distribution of the inputs."),
    contract: str | None = typer.Option(None, "--contract", help="Judge by flash, flash_splits or dense."),
) -> None:
    """Draw one case from inside: mask, exact weights, map of tiles, and the errors of a backend by query and head.

    Exit code 1 if the backend is wrong on it.

    Example: [bold]attnbench show '{"q_len": 200, "k_len": 200, "q_heads": 4, "head_dim": 64, "dtype": "fp32",
    "mask": "causal"}' --backend sdpa_flash --out pictures[/bold]
    """
    require_backend(backend)
    from attnbench.conformance.one_case import inspect_case
    from attnbench.device import work_on
    from attnbench.report.charts.one_case import draw_pictures

    device = work_on(device)
    one = the_case(case, results)
    remark(f"device {device}: {backend} on {one.id}")
    options = {"device": device, "seed": seed, "distribution": distribution, "contract": contract}
    view = inspect_case(one, backend, heads=tuple(head or ()), block=block, **options)  # type: ignore[arg-type]
    for path in draw_pictures(view, to):
        out().print(str(path), markup=False, soft_wrap=True)
    word = "right" if view.verdict.ok else f"wrong: {view.verdict.reason}"
    out().print(
        f"{word} ({view.verdict.error_over_budget:.3g} of what is allowed)", markup=False, soft_wrap=True
    )
    if not view.verdict.ok:
        raise typer.Exit(1)


def the_case(text: str, results: Path | None) -> Case:
    """The case that the text describes as JSON, or names by its id among results."""
    if results is None:
        if not text.lstrip().startswith("{"):
            raise AttnbenchError(
                f"{text[:60]!r} is not a JSON object; give the case as JSON, or its id with --from RESULTS"
            )
        return case_of(text)
    from attnbench.problem import Case
    from attnbench.sweep.store import read_results

    cases = {result.case_id: result.case for result in read_results(results)}
    if text not in cases:
        near = [name for name in cases if text in name][:3]
        hint = f"; near: {', '.join(near)}" if near else ""
        raise AttnbenchError(f"{results} has no case {text!r}{hint}")
    return Case.from_json(cases[text])
