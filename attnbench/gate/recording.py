"""What does this machine measure where nothing changed, and where a known slow-down was put in?

Arms of one backend, all the same code: some as they are, some with a busy wait after each call. Which of two of
them is called base and which head is decided afterwards, so that one recording answers many questions.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attnbench.errors import AttnbenchError
from attnbench.gate.arms import Arm, Ran, Track
from attnbench.gate.stages import SEEDS
from attnbench.sweep.suite import Planned

SAME = ("same 1", "same 2", "same 3")
SLOWER = {"slower 3 %": 0.03, "slower 5 %": 0.05, "slower 10 %": 0.10}
Row = tuple[str, str, str, str, int, int, float, float]
COLUMNS = ("backend", "case", "pass", "arm", "group", "round", "least_ms", "mean_ms")


def arms_of(backend: str, folder: Path | None = None) -> list[Arm]:
    """The arms of a recording: three that are the same, three slowed by a known share."""
    return [
        *(Arm(name, backend, folder) for name in SAME),
        *(Arm(name, backend, folder, slower_by=share) for name, share in SLOWER.items()),
    ]


def rows_of(runs: Iterable[Ran]) -> list[Row]:
    """One row a round: the least and the mean of its block; of arms that were timed."""
    return [
        (
            ran.result.backend,
            ran.result.case_id,
            which,
            ran.arm,
            ran.group,
            index,
            min(block),
            float(np.mean(block)),
        )
        for ran in runs
        for which, blocks in ran.result.samples_ms.items()
        for index, block in enumerate(blocks)
    ]


def write_rows(rows: Sequence[Row], file: Path) -> None:
    """Keep rounds in a Parquet file, to be looked at again."""
    frame_of(rows).to_parquet(file, index=False)


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    """The rounds as a frame with COLUMNS."""
    return pd.DataFrame(rows, columns=list(COLUMNS))


def record_group(track: Track, planned: Sequence[Planned], backend: str, group: int) -> list[Row]:
    """Time every arm of a backend on every case in one group of fresh processes.

    AttnbenchError where nothing could be timed in all arms: no further group would do better.
    """
    ran = list(track.run(planned, arms_of(backend), group, seed=group % SEEDS))
    rows = rows_of(ran)
    if not rows:
        first = next((one for one in ran if one.result.status != "ok"), ran[0])
        said = first.result.reason or "; ".join(first.result.notes)
        raise AttnbenchError(
            f"{backend} cannot be calibrated with: no case was timed in every arm; "
            f"`{first.arm}` on {first.result.case_id} is {first.result.status} ({said})"
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
    missing = set(COLUMNS) - set(frame.columns)
    if missing:
        raise AttnbenchError(f"no recording: it lacks the columns {', '.join(sorted(missing))}")
    found = []
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
        found.append(Recorded(str(backend), str(case), str(which), by_arm["least_ms"], by_arm["mean_ms"]))
    return found
