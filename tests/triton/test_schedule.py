"""Under every schedule each tile is computed once, by the program it was dealt to, the longest first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from attnbench.backend import Backend
from attnbench.problem import Case, make_inputs, parse_mask

PROGRAMS = [None, 1, 3, 4, 1000]


@pytest.fixture
def schedules(triton_backend: Backend) -> Any:
    """The module, imported once the backend decided whether Triton is interpreted."""
    from attnbench_backends.triton import schedule

    return schedule


@triton.jit
def _count(out, schedule, blocks, heads, SHARE: tl.constexpr, TILE: tl.constexpr):
    place, tiles = SHARE(schedule)
    for turn in range(0, tiles):  # noqa: PIE808 - Triton's range takes a start
        block, b, h = TILE(schedule, place + turn, blocks, heads)
        tl.atomic_add(out + (b * heads + h) * blocks + block, 1)


@pytest.fixture
def visits(triton_backend: Backend, device: str) -> Callable[..., list[int]]:
    """`visits(schedule, batch, heads, blocks)`: how often the kernels' own walk comes to each tile."""
    from attnbench_backends.triton.walking import share_of_program, tile_at

    def run(schedule: Any, batch: int, heads: int, blocks: int) -> list[int]:
        out = torch.zeros(batch * heads * blocks, dtype=torch.int32, device=device)
        _count[(schedule.programs,)](
            out, schedule.arguments, blocks, heads, SHARE=share_of_program, TILE=tile_at
        )
        return out.tolist()

    return run


def _work(batch: int = 2, heads: int = 3, blocks: int = 5) -> np.ndarray:
    return np.arange(batch * heads * blocks).reshape(batch, heads, blocks) * 7 % 11  # [B, H, blocks]


@pytest.mark.parametrize("programs", PROGRAMS)
@pytest.mark.parametrize("section", [0, 6, 10, 1000])
def test_the_kernels_walk_comes_to_every_tile_once(
    schedules: Any, visits: Any, device: str, section: int, programs: int | None
) -> None:
    made = schedules.schedule(_work(), section, programs, torch.device(device))
    assert made.programs == (30 if programs is None else min(30, programs))
    assert visits(made, 2, 3, 5) == [1] * 30


def test_a_tile_that_is_left_out_or_done_twice_is_seen(schedules: Any, visits: Any, device: str) -> None:
    made = schedules.schedule(_work(), 0, 4, torch.device(device))
    last = made.shares.clone()
    last[-1] -= 1
    assert min(visits(replace(made, shares=last), 2, 3, 5)) == 0
    middle = made.shares.clone()
    middle[2] += 1  # nothing is left out: the second program's share is longer, and the third's shorter
    assert visits(replace(made, shares=middle), 2, 3, 5) == [1] * 30
    order = made.order.clone()
    order[3] = order[4]
    assert sorted(set(visits(replace(made, order=order), 2, 3, 5))) == [0, 1, 2]


def test_heads_follow_one_another_and_the_longest_tile_of_each_is_first(schedules: Any) -> None:
    work = np.array([[[1, 5, 3], [2, 9, 9]]])
    assert schedules.in_order(work, 0).tolist() == [1, 2, 0, 5, 4, 3]


def test_the_longest_tiles_of_a_section_of_heads_are_first(schedules: Any) -> None:
    work = np.array([[[1, 5], [2, 9]], [[8, 3], [7, 7]]])
    assert schedules.in_order(work, 8).tolist() == [3, 4, 7, 6, 1, 5, 2, 0]
    assert schedules.in_order(work, 4).tolist() == [3, 1, 2, 0, 4, 7, 6, 5]
    # Two sections of two heads: three tiles ask for two heads each.
    assert schedules.in_order(work, 3).tolist() == schedules.in_order(work, 4).tolist()


@pytest.mark.parametrize(
    ("cost", "shares"),
    [
        ([5, 4, 3, 3, 3], [[0, 3], [1, 2, 4]]),  # 5 and 4; 3 after the 4, 3 after the 5, 3 after the 7
        ([1, 1, 1], [[0, 2], [1]]),
        ([9, 1, 1, 1], [[0], [1, 2, 3]]),
    ],
)
def test_each_tile_goes_to_the_program_that_is_free_first(
    schedules: Any, cost: list[int], shares: list[list[int]]
) -> None:
    assert schedules.dealt(cost, 2) == shares


@pytest.mark.parametrize(
    ("cost", "programs", "idle"),
    [
        ([2, 2, 2, 2], 2, 0.0),
        ([2, 2, 2], 2, 1 / 4),  # one of two works 4, the other 2
        ([1, 1, 4], 2, 2 / 5),  # the longest last: 5 and 1
        ([4, 1, 1], 2, 1 / 4),  # the longest first: 4 and 2
        ([1] * 5, 4, 3 / 8),  # a wave and a quarter takes two
        ([3], 4, 3 / 4),
    ],
)
def test_the_idle_share_is_what_the_last_program_leaves_the_others_waiting(
    schedules: Any, cost: list[int], programs: int, idle: float
) -> None:
    assert schedules.idle_share(cost, programs) == pytest.approx(idle)


def test_a_long_document_beside_short_ones_does_not_come_last(schedules: Any) -> None:
    """Four rows of two heads; the last row alone is one document, whose tiles are eight times as long."""
    work = np.ones((4, 2, 8), dtype=int)
    work[3] = 8
    cost = schedules.costs(work)
    by_head, together = (schedules.idle_share(cost[schedules.in_order(work, n)], 12) for n in (0, work.size))
    # 240 blocks, starts and ends counted, are 20 a program. By head the 48 short tiles of 2 take 8, and the 16 long
    # ones of 9 two turns: 26. The long ones first: 18 for four programs, and 9 and short ones for eight.
    assert by_head == pytest.approx(1 - 20 / 26)
    assert together == pytest.approx(1 - 20 / 21)


def test_a_causal_tail_by_hand(triton_backend: Backend) -> None:
    from tools.triton_tails import tail

    # Queries of 128 by keys of 128: tiles of 1, 2, 3 and 4 blocks, and one for the start and end of each: 14 a head.
    case = Case(q_len=512, k_len=512, q_heads=3, head_dim=128, dtype="bf16", mask=parse_mask("causal"))
    counted = tail(case, "forward", processors=4)
    assert (counted.tiles, counted.waves) == (12, 3.0)
    # By head on four: 5 4 3 2, then 5 4 3 2 on those free at 2 3 4 5, all free at 7; then 12 11 10 9: 42 of 48.
    assert counted.idle_by_head == pytest.approx(1 - 42 / 48)
    # The longest of all first: 5 5 5 4, then 4 4 3 3 from 4 5 5 5 to 8 9 8 8, then 3 2 2 2: 42 of 44.
    assert counted.idle_across == pytest.approx(1 - 42 / 44)
    assert counted.idle == counted.idle_across  # three waves are all there is


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "causal", "q_heads": 2, "kv_heads": 1},
        {"mask": "documents([30, 2, 8], [9, 9, 22])", "batch": 2, "q_heads": 1},
        {"mask": "block_sparse([[[1, 0], [1, 1]], [[0, 0], [0, 1]]], 20)", "q_heads": 2},
    ],
    ids=["causal", "documents", "block_sparse"],
)
def test_every_schedule_gives_the_same_bits(
    triton_backend: Backend, a_case: Any, device: str, changes: dict[str, Any]
) -> None:
    from attnbench_backends.triton.configurations import Configuration
    from attnbench_backends.triton.launch import Plan

    fields = {"q_len": 40, "k_len": 40, "direction": "fwd_bwd", **changes}
    case = a_case(**fields | {"mask": parse_mask(fields["mask"])})
    inputs = make_inputs(case, device=device)
    runs = []
    for waves, persistent in ((0, 0), (2, 0), (2, 1)):
        tile = Configuration(16, 16, 4, 1, waves=waves, persistent=persistent)
        plan = Plan(case, inputs.device, lambda kernel, tile=tile: tile, processors=2)
        changed = plan.bind(())
        out, lse = plan.forward(inputs.q, inputs.k, inputs.v, changed)
        runs.append((out, lse, *plan.backward(inputs.q, inputs.k, inputs.v, changed, out, lse, inputs.dout)))
        for over in ("keys", "queries"):
            made = plan.schedule(over, tile)
            assert made.programs == (2 * persistent or made.order.numel())
    for run in runs[1:]:
        assert all(torch.equal(one, other) for one, other in zip(runs[0], run, strict=True))


def test_the_table_of_tails_in_the_predictions_is_what_the_blocks_say(triton_backend: Backend) -> None:
    from tools.triton_tails import rows

    page = (Path(__file__).parents[2] / "docs" / "triton-predictions.md").read_text(encoding="utf-8")
    assert "\n".join(rows()) in page
