"""The textbook forms do the work that they are there to show, and refuse what they cannot."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from attnbench.backend.registry import resolve
from attnbench.problem import Case, Causal, Padding, SlidingWindow


@pytest.mark.parametrize(("window", "columns"), [(31, 64 + 31), (0, 64)])
def test_local_blocks_computes_its_window_and_no_more(
    a_case: Callable[..., Case], window: int, columns: int
) -> None:
    from attnbench_backends.local_blocks import regions

    case = a_case(q_len=640, k_len=640, mask=Causal() & SlidingWindow(window, 0))
    blocks = regions(case, torch.device("cpu"))
    assert [r.keys.stop - r.keys.start for r in blocks] == [64, *[columns] * 9]
    seen = sum(int(r.permitted.sum()) for r in blocks)
    assert seen * case.q_heads == case.pairs


def test_local_blocks_reads_the_widest_row_of_a_batch(a_case: Callable[..., Case]) -> None:
    from attnbench_backends.local_blocks import regions

    case = a_case(batch=2, q_len=64, k_len=64, mask=Padding([10, 40]))
    (region,) = regions(case, torch.device("cpu"))
    assert (region.keys.start, region.keys.stop) == (0, 40)


def test_pooling_takes_one_query_as_it_comes_and_refuses_a_long_text(a_case: Callable[..., Any]) -> None:
    pooling = resolve("attention_pooling")
    assert pooling.refuses(a_case(q_len=1, k_len=4096)) is None
    refusal = pooling.refuses(a_case(q_len=257, k_len=257))
    assert refusal is not None
    assert "up to 256 queries, not 257" in refusal.reason
