"""The suite `masks`: every backend is judged, and timed if it is right."""

from __future__ import annotations

from collections.abc import Callable


def test_masks(timed_if_right: Callable[[], None]) -> None:
    timed_if_right()
