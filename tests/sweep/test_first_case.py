"""In the first case of a recorded sweep the first rounds are as fast as the last: its workers were warm.

`first_case.json` holds the least disturbed call of each round of the suite `quick`'s first case, recorded beside other
jobs. `make perf` compares a case that is run first with the same case run tenth.
"""

from __future__ import annotations

import json
from pathlib import Path

from attnbench.gate import ratio_of_medians

RECORDED: dict[str, list[float]] = json.loads(
    Path(__file__).with_suffix("").with_name("first_case.json").read_text()
)["least_ms_by_round"]


def slower_at_first(rounds: list[float]) -> bool:
    """Whether the first half of the rounds is surely slower than the second."""
    half = len(rounds) // 2
    ratio = ratio_of_medians([[ms] for ms in rounds[half:]], [[ms] for ms in rounds[:half]])
    return ratio is not None and ratio.low is not None and ratio.low > 1


def test_no_backend_is_slower_at_first() -> None:
    assert len(RECORDED) >= 10
    assert [name for name, rounds in RECORDED.items() if slower_at_first(rounds)] == []


def test_workers_that_still_warm_up_are_seen() -> None:
    cold = {name: [10 * ms for ms in rounds[:5]] + rounds[5:] for name, rounds in RECORDED.items()}
    assert [name for name, rounds in cold.items() if not slower_at_first(rounds)] == []
