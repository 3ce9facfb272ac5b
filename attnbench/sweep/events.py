"""What happens during a sweep? Told as values to whoever shows it; the runner itself prints nothing."""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.sweep.result import Result


@dataclass(frozen=True)
class SweepStarted:
    """`rows` (case, backend) pairs are to be done; `already_done` were found in the folder."""

    rows: int
    already_done: int
    device: str
    machine: str
    backends: tuple[str, ...]


@dataclass(frozen=True)
class CaseStarted:
    """The case with this id is taken up: the `index`-th of `cases`, from 1."""

    case_id: str
    index: int
    cases: int


@dataclass(frozen=True)
class Judged:
    """A backend was judged on the case; `status` is `ok` where it goes on to be timed."""

    case_id: str
    backend: str
    status: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """A row is written; `rows_done` of the sweep's rows are."""

    result: Result
    rows_done: int
    rows: int


@dataclass(frozen=True)
class Notice:
    """Something the person should know and need not act on."""

    text: str


@dataclass(frozen=True)
class SweepFinished:
    """The sweep is complete."""

    rows: int
    seconds: float


Event = SweepStarted | CaseStarted | Judged | Finished | Notice | SweepFinished
