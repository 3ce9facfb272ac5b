"""Is every backend right on the suites that --suite path/to/suite.toml gives, and how fast is what is right?"""

from __future__ import annotations

from collections.abc import Callable


def test_given(timed_if_right: Callable[[], None]) -> None:
    timed_if_right()
