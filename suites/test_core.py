"""Is every backend right on the suite `core`, and how fast is what is right?"""

from __future__ import annotations

from collections.abc import Callable


def test_core(timed_if_right: Callable[[], None]) -> None:
    timed_if_right()
