"""The time of a case that is run first over its time when it is run last, printed; nothing is asserted.

Run by `make perf`. Two sweeps in fresh workers over the same ten cases: workers that still load or warm up would make
the first case slower. `--record FILE` keeps the rounds.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from attnbench.gate import Ratio, ratio_of_medians
from attnbench.sweep import Result, run_sweep
from attnbench.sweep.suite import load_suite

BACKENDS = ("naive", "sdpa_flash", "sdpa_math", "local_blocks", "per_head")
CASES = 10
Rounds = list[list[float]]


def least_of_rounds(results: Sequence[Result], case_id: str) -> dict[str, Rounds]:
    """The least disturbed call of each round of a case's forward, by backend."""
    return {
        result.backend: [[min(one)] for one in result.samples_ms["fwd"]]
        for result in results
        if result.case_id == case_id and result.samples_ms
    }


def ratios(first: dict[str, Rounds], last: dict[str, Rounds]) -> dict[str, Ratio]:
    """First over last with its 95 % interval, by backend."""
    both = {name: ratio_of_medians(last[name], first[name]) for name in first if name in last}
    return {name: ratio for name, ratio in both.items() if ratio is not None}


def main() -> None:
    cases = load_suite("quick").cases("cpu")[:CASES]
    first, last = (
        least_of_rounds(run_sweep(order, BACKENDS, device="cpu"), cases[0].case.id)
        for order in (cases, [*cases[1:], cases[0]])
    )
    table = Table(
        "backend", "first / last", "95 % interval", title=f"{cases[0].case.id}, run first and tenth"
    )
    for name, ratio in ratios(first, last).items():
        table.add_row(name, f"{ratio.point:.3f}", f"{ratio.low:.3f} to {ratio.high:.3f}")
    Console().print(table)
    if "--record" in sys.argv:
        record: dict[str, Any] = {"case": cases[0].case.id, "first": first, "last": last}
        Path(sys.argv[sys.argv.index("--record") + 1]).write_text(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
