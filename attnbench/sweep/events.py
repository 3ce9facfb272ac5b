"""The events of a sweep, as values for the caller to show; the runner itself prints nothing."""

from __future__ import annotations

from dataclasses import dataclass

from attnbench.sweep.result import Result


@dataclass(frozen=True)
class SweepStarted:
    """`rows` (case, backend) pairs are to be done; `already_done` are stored in the folder."""

    rows: int
    already_done: int
    device: str
    machine: str
    backends: tuple[str, ...]


@dataclass(frozen=True)
class CaseStarted:
    """The case with this id begins: the `index`-th of `cases`, from 1."""

    case_id: str
    index: int
    cases: int


@dataclass(frozen=True)
class Doing:
    """What is being done now, such as `judging flex`; `share` of the case in hand is done."""

    text: str
    share: float = 0.0


@dataclass(frozen=True)
class Judged:
    """A backend was judged on the case; with status `ok` it is timed next."""

    case_id: str
    backend: str
    status: str
    reason: str


@dataclass(frozen=True)
class Finished:
    """A row is written, `rows_done` of `rows` so far."""

    result: Result
    rows_done: int
    rows: int


@dataclass(frozen=True)
class Notice:
    """Something the user should know and need not act on."""

    text: str


@dataclass(frozen=True)
class SweepFinished:
    """The sweep is complete."""

    rows: int
    seconds: float


Event = SweepStarted | CaseStarted | Doing | Judged | Finished | Notice | SweepFinished
