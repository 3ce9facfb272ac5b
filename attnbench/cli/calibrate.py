"""`attnbench gate --calibrate`: print what can be gated on this machine, and how often the gate would be wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attnbench.cli.console import out, print_json, remark
from attnbench.errors import NotComparable

if TYPE_CHECKING:
    from attnbench.gate.calibration import Calibration
    from attnbench.gate.options import GateOptions


def print_calibration(options: GateOptions, as_json: bool) -> None:
    """Record, replay, print; NotComparable (exit 3) if the machine is unfit to gate on the effect."""
    from attnbench.gate.calibration import calibrate_machine

    calibration = calibrate_machine(options, remark)
    if as_json:
        print_json(calibration.to_json())
    else:
        _print(calibration)
    if not calibration.fit:
        smallest = calibration.smallest_effect
        advice = (
            f"gate with --effect {smallest:g}"
            if smallest is not None and smallest > options.effect
            else "use a quieter machine, or one that is not shared"
        )
        raise NotComparable(f"this machine is unfit to gate on {options.effect:.0%}; {advice}")


def _print(calibration: Calibration) -> None:
    from rich.table import Table

    columns = (
        "change",
        "comparisons",
        "verdicts",
        "called slower",
        "95 % interval",
        "inconclusive",
        "mean > 5 %",
    )
    table = Table(*columns, box=None, pad_edge=False)
    for rate in calibration.rates:
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
    smallest = calibration.smallest_effect
    effect = "none of 3, 5 and 10 %" if smallest is None else f"{smallest:.0%}"
    out().print(
        f"smallest slow-down found in 90 % of replays: {effect}; stages of {calibration.rule.groups} groups of "
        "processes. `mean > 5 %`: comparing the means of two separate runs, on the same samples."
    )
