"""The sweep: every case of a suite on every backend, each outcome a row, whichever worker crashes.

The names are loaded on first use: the command line starts a worker without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnbench.sweep.events import (
        CaseStarted,
        Event,
        Finished,
        Judged,
        Notice,
        SweepFinished,
        SweepStarted,
    )
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
_MODULE_OF = {"Result": "result", "Store": "store", "run_sweep": "runner"}  # the others are events


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF.get(name, 'events')}"), name)
