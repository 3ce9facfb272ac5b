"""The sweep: every case of a suite on every backend, each outcome a row, whichever worker crashes."""

from attnbench.sweep.events import CaseStarted, Event, Finished, Judged, Notice, SweepFinished, SweepStarted
from attnbench.sweep.result import Result
from attnbench.sweep.runner import run_sweep
from attnbench.sweep.store import Store

__all__ = [
    "CaseStarted",
    "Event",
    "Finished",
    "Judged",
    "Notice",
    "Result",
    "Store",
    "SweepFinished",
    "SweepStarted",
    "run_sweep",
]
