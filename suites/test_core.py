"""The suite `core`: every backend is judged, and timed if it is right."""

from __future__ import annotations

from collections.abc import Callable


def test_core(timed_if_right: Callable[[], None]) -> None:
    timed_if_right()
