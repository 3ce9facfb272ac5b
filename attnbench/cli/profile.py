"""`attnbench profile`: a trace of one case for Perfetto, and a table of its operators by time."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from attnbench.cli.console import out, print_all, print_json, remark, require_backend
from attnbench.cli.show import the_case
from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from rich.table import Table

    from attnbench.measure.profile import Profile


def profile_one_case(
    case: str = typer.Argument(..., help="A case as JSON, or its id with --from."),
    backend: str = typer.Option(
        ..., "--backend", "-b", help="A backend's name, or path/to/file.py:function."
    ),
    to: Path = typer.Option(Path("profile"), "--out", "-o", help="The folder for the trace."),
    results: Path | None = typer.Option(
        None, "--from", help="The result folder that holds the case of that id."
    ),
    calls: int = typer.Option(10, "--calls", min=1, help="Calls to profile."),
    top: int = typer.Option(12, "--top", min=1, help="Operators to print."),
    device: str = typer.Option("auto", "--device", help="auto (cuda if present), cpu, cuda or cuda:N."),
    seed: int = typer.Option(0, "--seed", min=0, help="The seed of the inputs."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON for a machine."),
) -> None:
    """Profile one case on one backend: trace.json (open it in Perfetto, chrome://tracing or TensorBoard) and a table.

    It judges nothing; `attnbench check BACKEND --case CASE` does.

    Example: [bold]attnbench profile '{"q_len": 1024, "k_len": 1024, "q_heads": 8, "head_dim": 64, "dtype": "fp32",
    "mask": "causal", "direction": "fwd_bwd"}' --backend sdpa_flash[/bold]
    """
    require_backend(backend)
    from attnbench.backend.registry import resolve
    from attnbench.device import work_on
    from attnbench.measure.profile import profile_case
    from attnbench.problem import make_inputs

    device = work_on(device)
    one = the_case(case, results)
    profiled = resolve(backend)
    refusal = profiled.refuses(one, device.split(":")[0])
    if refusal is not None:
        raise AttnbenchError(f"{backend} refuses this case: {refusal.reason}")
    remark(f"device {device}: profiling {backend} on {one.id}")
    try:
        profile = profile_case(profiled, one, make_inputs(one, seed, device), calls)
    except NotImplementedError as error:
        raise AttnbenchError(f"{backend} refuses this case: {error}") from error
    to.mkdir(parents=True, exist_ok=True)
    path = to / "trace.json"
    profile.trace.export_chrome_trace(str(path))
    if as_json:
        print_json(_record(profile, path))
        return
    print_all([_table(profile, calls, top)])
    for line in _summary(profile):
        out().print(line, markup=False, soft_wrap=True)
    out().print(f"trace in {path}", markup=False, soft_wrap=True)


def _record(profile: Profile, path: Path) -> dict[str, Any]:
    names = ("kernel", "wall_ms", "computing_ms", "copying_ms", "waiting_ms", "prepare_ms", "first_ms")
    record = {name: getattr(profile, name) for name in (*names, "outside_share", "outside_share_of_first")}
    return record | {"operators": [vars(o) for o in profile.operators], "trace": str(path)}


def _table(profile: Profile, calls: int, top: int) -> Table:
    from rich.table import Table
    from rich.text import Text

    from attnbench.report.cells import clean, percent, three_digits

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("operator")
    for name in ("times per call", "ms per call", "share of a call"):
        table.add_column(name, justify="right")
    table.add_column("")
    total = profile.computing_ms + profile.copying_ms + profile.waiting_ms
    for operator in profile.operators[:top]:
        own_ms = operator.own_ms / calls
        table.add_row(
            Text(clean(operator.name, 70)),
            three_digits(operator.calls / calls),
            three_digits(own_ms),
            percent(own_ms / total),
            "copy" if operator.is_copy else "",
        )
    return table


def _summary(profile: Profile) -> list[str]:
    from attnbench.report.cells import milliseconds, percent

    walls = ", ".join(f"{name} {milliseconds(ms)}" for name, ms in profile.wall_ms.items())
    steps = ", ".join(f"{name} {milliseconds(ms)}" for name, ms in profile.prepare_ms.items())
    parts = (
        ("computing", profile.computing_ms),
        ("copies", profile.copying_ms),
        ("Python, launches, gaps", profile.waiting_ms),
    )
    return [
        "",
        f"kernel: {profile.kernel}",
        f"a warm call by the wall clock: {walls}",
        "a profiled call: " + ", ".join(f"{name} {milliseconds(ms)}" for name, ms in parts),
        f"prepared once per case in {milliseconds(profile.first_ms)}" + (f" ({steps})" if steps else ""),
        f"outside the kernel: {percent(profile.outside_share)} of a warm call, "
        f"{percent(profile.outside_share_of_first)} of the first one with its preparation",
    ]
