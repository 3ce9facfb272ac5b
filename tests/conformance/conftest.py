"""A row of the battery of which a test states only what differs from the plain one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attnbench.conformance.battery_factors import PLAIN, Row


@pytest.fixture
def a_row() -> Callable[..., Row]:
    """`a_row(batch=3)`: full, 128 tokens, 4 heads, head dim 64, unless told otherwise."""
    return lambda **changes: Row(**(PLAIN | changes))
