"""`attnbench gate --calibrate`: what can be gated on this machine, and how often would the gate be wrong?"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import typer

from attnbench.cli.console import complain, out, print_json, remark
from attnbench.errors import BackendUnavailable

if TYPE_CHECKING:
    from attnbench.cli.revisions import Asked
    from attnbench.gate.calibration import Calibration

BACKENDS = ["naive"]
FEWEST_GROUPS, MOST_GROUPS = 6, 12
UNFIT = 3


def calibrate_machine(asked: Asked, as_json: bool) -> None:
    """Record, replay, print; exit 0 where the machine is fit to gate on the effect, 3 where it is not."""
    from attnbench.device import resolve_device
    from attnbench.gate.arms import Track
    from attnbench.gate.calibration import calibrate
    from attnbench.gate.recording import frame_of, record_group, recorded, write_rows
    from attnbench.sweep.lanes import make_lanes
    from attnbench.sweep.suite import load_suite

    device = resolve_device(asked.device)
    planned = load_suite(asked.suite).cases(device)
    backends = asked.backends or BACKENDS
    # None is started: whether they are there is asked before the minutes.
    for lane in make_lanes(backends, device):
        if lane.given_up is not None:
            raise BackendUnavailable(f"{lane.name}: {lane.given_up.reason}")
    remark(
        f"device {device}, suite {asked.suite}: {', '.join(backends)} as it is and slowed by 3, 5 and 10 %"
    )
    ends = time.monotonic() + 60 * asked.minutes
    rows = []
    with Track(device, threads=asked.threads if device == "cpu" else None) as track:
        for group in range(MOST_GROUPS):
            if group >= FEWEST_GROUPS and time.monotonic() > ends:
                remark(f"the {asked.minutes:g} minutes are over")
                break
            remark(f"processes {group + 1} of {MOST_GROUPS}")
            for backend in backends:
                rows += record_group(track, planned, backend, group)
    if asked.record is not None:
        write_rows(rows, asked.record)
    found = calibrate(recorded(frame_of(rows)), asked.effect)
    if as_json:
        print_json(found.to_json())
    else:
        show(found)
    if not found.fit:
        smallest = found.smallest_effect
        advice = (
            f"gate with --effect {smallest:g}"
            if smallest is not None and smallest > asked.effect
            else "use a quieter machine, or one that is not shared"
        )
        complain(f"this machine is unfit to gate on {asked.effect:.0%}; {advice}")
        raise typer.Exit(UNFIT)


def show(found: Calibration) -> None:
    """The table of rates, and what it means."""
    from rich.table import Table

    heads = (
        "change",
        "comparisons",
        "verdicts",
        "called slower",
        "95 % interval",
        "inconclusive",
        "mean > 5 %",
    )
    table = Table(*heads, box=None, pad_edge=False)
    for rate in found.rates:
        low, high = rate.interval(rate.slower)
        table.add_row(
            rate.change,
            str(len(rate.cases)),
            str(rate.verdicts),
            f"{rate.slower / rate.verdicts:.1%}",
            f"{low:.2%} to {high:.2%}",
            f"{rate.inconclusive / rate.verdicts:.1%}",
            f"{rate.means_flagged / max(1, rate.means_compared):.1%}",
        )
    out().print(table)
    smallest = found.smallest_effect
    said = "none of 3, 5 and 10 %" if smallest is None else f"{smallest:.0%}"
    out().print(
        f"smallest slow-down found in 90 % of replays: {said}; stages of {found.rule.groups} groups of processes. "
        "`mean > 5 %` is what comparing the means of two separate runs says of the same samples."
    )
