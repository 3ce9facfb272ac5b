"""The order of tiles and the program of each: longest first; one program per tile, or shares dealt in advance.

A tile here is what a program computes at a time: a block of queries (forward, dQ) or of keys (dK, dV) of one head. A
GPU gives each tile to the multiprocessor that is free first, in the order of the grid. `dealt` does the same in
advance: for persistent programs, which walk over their share of the tiles, and to count the idle time at the end.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .walking import ScheduleArguments

START_AND_END = 1  # of a tile, in blocks: it loads and stores its own rows, and its pipeline starts again


@dataclass(frozen=True, eq=False)
class Schedule:
    """The tiles of a launch in order, int32 [tiles], on the device.

    A tile is (b * heads + h) * blocks + block. Program p takes the tiles shares[p] to shares[p + 1] of the order;
    without `shares` it takes the p-th.
    """

    order: Tensor
    shares: Tensor | None

    @property
    def programs(self) -> int:
        return self.order.numel() if self.shares is None else self.shares.numel() - 1

    @property
    def arguments(self) -> ScheduleArguments:
        """As the kernels take them."""
        return ScheduleArguments(self.order, self.shares)


def schedule(work: np.ndarray, section_tiles: int, programs: int | None, device: torch.device) -> Schedule:
    """The schedule of a launch whose tiles visit `work` blocks each, [B, heads, blocks].

    `programs`: the number of programs that share the tiles; None: one program per tile.
    """
    order = in_order(work, section_tiles)
    if programs is None:
        return Schedule(_moved(order, device), None)
    shares = dealt(costs(work)[order], min(programs, order.size))
    ends = np.cumsum([0, *map(len, shares)])
    return Schedule(_moved(order[np.concatenate(shares)], device), _moved(ends, device))


def in_order(work: np.ndarray, section_tiles: int) -> np.ndarray:
    """The tiles of work [B, heads, blocks]: section after section of heads, in each the most work first.

    The heads are cut into equal sections of about `section_tiles` tiles; 0: every head is a section. Tiles that run at
    the same time should share keys and values in the L2 cache, so heads follow one another; but a section that does not
    fill the GPU leaves its longest tiles, or those of the next one, to run alone at the end.
    """
    heads, blocks = work.shape[0] * work.shape[1], work.shape[2]
    head, block = np.divmod(np.arange(work.size), blocks)
    sections = max(1, heads // max(1, -(-section_tiles // blocks)))
    # With equal work, heads stay together and later blocks come first: falling work for causal masks as well.
    return np.lexsort((-block, head, -work.ravel(), head * sections // heads))


def costs(work: np.ndarray) -> np.ndarray:
    """The cost of each tile in blocks: those that it visits, and its start and end. [tiles]"""
    return work.ravel() + START_AND_END


def dealt(cost: Sequence[int] | np.ndarray, programs: int) -> list[list[int]]:
    """The places in the order that each program takes: each in turn to the one that is free first.

    List scheduling (Graham 1966); with the longest first it is at most a third above the optimum (Graham 1969).
    """
    free = [(0, program) for program in range(programs)]
    shares: list[list[int]] = [[] for _ in range(programs)]
    for place, blocks in enumerate(map(int, cost)):
        at, program = free[0]
        shares[program].append(place)
        heapq.heapreplace(free, (at + blocks, program))
    return shares


def idle_share(cost: Sequence[int] | np.ndarray, programs: int) -> float:
    """The share of the programs' time that is spent waiting for the last of them, for tiles in this order."""
    loads = [sum(int(cost[place]) for place in share) for share in dealt(cost, programs)]
    return 1 - sum(loads) / (programs * max(loads))


def _moved(numbers: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(numbers.astype(np.int32)).to(device)
