"""The flat record of one model run on one backend, and the file that keeps such records."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from attnbench.errors import StoreError
from attnbench.statuses import STATUS_TABLE

MODEL_STATUSES = tuple(status.word for status in STATUS_TABLE if status.is_of_models)
ROLES = ("exact", "rounding", "seed", "backend")
RUNS_FILE = "models.jsonl"
Record = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class ModelRun:
    """One run of a model suite: JSON values only.

    role            "exact" (float64), "rounding" (float64 with the noise of roundings), "seed" (float64 from
                    another seed: the distance between right runs), "backend"
    dtype           of attention; the rest of the model is float32 (float64 in the first three roles)
    curves          per step or position, by name: loss, grad_norm; over_budget of a judged curve
    figures         results: held_out_loss, accuracy, f1, roc_auc, and costs such as step_ms
    over_budget     the error of a backend's curves over what rounding allows: right up to 1
    deviation       the worst step: {"curve", "step", "off", "allowed", "of_seed_spread"}
    counts          spikes, non_finite and rerouted calls
    """

    suite: str
    task: str
    role: str
    backend: str = ""
    dtype: str = "fp32"
    seed: int = 0
    steps: int = 0
    device: str = "cpu"
    status: str = "ok"
    reason: str = ""
    curves: dict[str, list[float | None]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    over_budget: float | None = None
    deviation: dict[str, Any] = field(default_factory=dict)
    machine: str = ""
    started_at: str = ""

    def __post_init__(self) -> None:
        if self.status not in MODEL_STATUSES:
            raise ValueError(f"no status {self.status!r}; take one of {', '.join(MODEL_STATUSES)}")
        if self.role not in ROLES:
            raise ValueError(f"no role {self.role!r}; take one of {', '.join(ROLES)}")

    @property
    def key(self) -> tuple[Any, ...]:
        """What identifies a run: resumed suites skip keys that are done."""
        return self.suite, self.task, self.role, self.backend, self.dtype, self.seed, self.steps, self.device

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> ModelRun:
        """Read a record; fields of later versions are ignored."""
        names = {f.name for f in fields(cls)}
        return cls(**{name: value for name, value in record.items() if name in names})


class TooSlow(Exception):
    """A backend exceeded its time limit; the message says how far it came."""


def finite(values: list[float]) -> list[float | None]:
    """The curve for JSON: None (null) for values that are not finite."""
    return [value if math.isfinite(value) else None for value in values]


def append_record(folder: Path, record: Record) -> None:
    """Append one record to the folder's models.jsonl and flush it to the disk."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / RUNS_FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(folder: Path) -> list[Record]:
    """The records of a folder, none if it has no file; a last line that a kill cut off is dropped.

    It is dropped on the disk too, so that the next record begins a line of its own.
    """
    path = folder / RUNS_FILE
    if not path.exists():
        return []
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    records = []
    for number, line in enumerate(whole.decode("utf-8").splitlines(), 1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise StoreError(
                f"{path}, line {number} is not a record: {error}; repair or remove the line"
            ) from error
    return records
