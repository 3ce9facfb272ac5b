"""Record arms of one backend on this machine: some unchanged, some slowed by a known share.

All arms run the same code; the slowed ones wait busily after each call. Which arm is base and which is head is
chosen afterwards, so one recording answers many questions.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attnbench.errors import AttnbenchError
from attnbench.gate.arms import Arm, ArmResult, ArmRunner
from attnbench.gate.stages import SEEDS
from attnbench.sweep.suite import Planned

SAME = ("same 1", "same 2", "same 3")
SLOWER = {"slower 3 %": 0.03, "slower 5 %": 0.05, "slower 10 %": 0.10}
FEWEST_GROUPS, MOST_GROUPS = 6, 12  # of processes in a recording
RoundRow = tuple[str, str, str, str, int, int, float, float]
ROUND_COLUMNS = ("backend", "case", "pass", "arm", "group", "round", "least_ms", "mean_ms")


def arms_of(backend: str, folder: Path | None = None) -> list[Arm]:
    """The arms of a recording: three unchanged, three slowed by a known share."""
    return [
        *(Arm(name, backend, folder) for name in SAME),
        *(Arm(name, backend, folder, slower_by=share) for name, share in SLOWER.items()),
    ]


def rows_of(results: Iterable[ArmResult]) -> list[RoundRow]:
    """One row per round of each timed arm: the least and the mean of its block."""
    return [
        (
            of_arm.result.backend,
            of_arm.result.case_id,
            which,
            of_arm.arm,
            of_arm.group,
            index,
            min(block),
            float(np.mean(block)),
        )
        for of_arm in results
        for which, blocks in of_arm.result.samples_ms.items()
        for index, block in enumerate(blocks)
    ]


def write_rows(rows: Sequence[RoundRow], file: Path) -> None:
    """Write rounds to a Parquet file."""
    frame_of(rows).to_parquet(file, index=False)


def frame_of(rows: Sequence[RoundRow]) -> pd.DataFrame:
    """The rounds as a frame with ROUND_COLUMNS."""
    return pd.DataFrame(rows, columns=list(ROUND_COLUMNS))


def record(
    planned: Sequence[Planned],
    backends: Sequence[str],
    device: str,
    *,
    threads: int | None,
    minutes: float,
    tell: Callable[[str], None],
) -> list[RoundRow]:
    """Record every backend in up to MOST_GROUPS groups of processes; after `minutes`, in FEWEST_GROUPS at least."""
    ends = time.monotonic() + 60 * minutes
    rows: list[RoundRow] = []
    with ArmRunner(device, threads=threads) as runner:
        for group in range(MOST_GROUPS):
            if group >= FEWEST_GROUPS and time.monotonic() > ends:
                tell(f"the {minutes:g} minutes are over")
                break
            tell(f"processes {group + 1} of {MOST_GROUPS}")
            for backend in backends:
                rows += record_group(runner, planned, backend, group)
    return rows


def record_group(runner: ArmRunner, planned: Sequence[Planned], backend: str, group: int) -> list[RoundRow]:
    """Time every arm of a backend on every case in one group of fresh processes.

    Raises AttnbenchError if no case could be timed in all arms: a further group would not help.
    """
    results = list(runner.run(planned, arms_of(backend), group, seed=group % SEEDS))
    rows = rows_of(results)
    if not rows:
        first = next((one for one in results if one.result.status != "ok"), results[0])
        reason = first.result.reason or "; ".join(first.result.notes)
        raise AttnbenchError(
            f"{backend} cannot be used to calibrate: no case was timed in every arm; "
            f"`{first.arm}` on {first.result.case_id} is {first.result.status} ({reason})"
        )
    return rows


@dataclass(frozen=True)
class Recorded:
    """One case and pass of a recording: arm -> [group, round] of the least milliseconds, and of the means."""

    backend: str
    case: str
    which: str
    least_ms: dict[str, np.ndarray]
    mean_ms: dict[str, np.ndarray]


def recorded(frame: pd.DataFrame) -> list[Recorded]:
    """The recording by case and pass; only groups and rounds that every arm has."""
    missing = set(ROUND_COLUMNS) - set(frame.columns)
    if missing:
        raise AttnbenchError(f"no recording: it lacks the columns {', '.join(sorted(missing))}")
    recordings = []
    for (backend, case, which), part in frame.groupby(["backend", "case", "pass"], sort=True):
        tables = {
            value: part.pivot_table(index=["group", "round"], columns="arm", values=value).dropna()
            for value in ("least_ms", "mean_ms")
        }
        sizes = tables["least_ms"].groupby(level="group").size()
        rounds = int(sizes.min()) if len(sizes) else 0
        if rounds < 2 or len(sizes) < 2:
            continue
        by_arm = {
            value: {
                str(arm): np.stack([column[group].to_numpy()[:rounds] for group in sizes.index])
                for arm, column in table.items()
            }
            for value, table in tables.items()
        }
        recordings.append(
            Recorded(str(backend), str(case), str(which), by_arm["least_ms"], by_arm["mean_ms"])
        )
    return recordings
