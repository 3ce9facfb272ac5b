"""Lets torch's waiting threads sleep soon where nothing is timed; workers keep the caller's own setting."""

from __future__ import annotations

import os
import sys

# OpenMP reads it when torch is loaded. Threads that spin long (300,000 turns) starve each other on busy cores; threads
# that sleep at once wake too late on a quiet machine.
NAME, TURNS = "GOMP_SPINCOUNT", "3000"
_ours = False


def sleep_soon() -> None:
    """Set it for this process, if torch is not loaded yet and the caller has set nothing."""
    global _ours
    if "torch" not in sys.modules and "OMP_WAIT_POLICY" not in os.environ and NAME not in os.environ:
        os.environ[NAME] = TURNS
        _ours = True


def as_given(environment: dict[str, str]) -> dict[str, str]:
    """The environment without what `sleep_soon` set: a worker's threads wait as the caller wants."""
    return {name: value for name, value in environment.items() if name != NAME or not _ours}
