"""Counts the waves of tiles in a launch, and the share of a GPU's time spent waiting for the last of them.

Counted from the blocks that tiles visit, not measured. `python -m tools.triton_tails` prints the table of
docs/triton-predictions.md.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from attnbench_backends.triton.configurations import Kernel, chosen
from attnbench_backends.triton.launch import Plan
from attnbench_backends.triton.schedule import costs, idle_share, in_order

from attnbench.problem import Case, Causal, Documents, Full, Mask

PROCESSORS = 132  # of an H200
HOPPER = (9, 0)
TOKENS, HEADS, HEAD_DIM = 16_384, 16, 128
LENGTHS = (512, 1_024, 2_048, 4_096, 8_192, 16_384, 32_768)
KERNELS: tuple[Kernel, ...] = ("forward", "dk_dv")  # dq has the tiles of the forward


@dataclass(frozen=True)
class Tail:
    """The tiles of a launch, its waves of one tile per multiprocessor, and the share of time that is idle.

    `idle` is for the order that runs; `idle_by_head` for head after head, `idle_across` for all heads together.
    """

    tiles: int
    waves: float
    idle_by_head: float
    idle: float
    idle_across: float


def tail(
    case: Case, kernel: Kernel, processors: int = PROCESSORS, capability: tuple[int, int] = HOPPER
) -> Tail:
    """The tail of a kernel's launch, with one program per multiprocessor at a time."""
    plan = Plan(
        case,
        torch.device("cpu"),
        lambda each: chosen(each, case, capability, here=False),
        processors=processors,
    )
    tile = plan.configuration(kernel)
    work = plan.work("queries" if kernel == "dk_dv" else "keys", tile)
    sections = (0, tile.waves * processors, work.size)
    idle = [idle_share(costs(work)[in_order(work, section)], processors) for section in sections]
    return Tail(work.size, work.size / processors, *idle)


def cases() -> Iterator[Case]:
    """Some cases of the GPU sweep, 16k tokens per batch: causal, full, packed documents of very different lengths."""
    for length in LENGTHS:
        yield _case(length, Causal())
    yield _case(TOKENS, Full())
    yield _case(8_192, Causal() & Documents((1_000, 3_000, 96, 4_096)))


def _case(length: int, mask: Mask) -> Case:
    return Case(
        batch=max(1, TOKENS // length), q_len=length, k_len=length, q_heads=HEADS, head_dim=HEAD_DIM, dtype="bf16",
        mask=mask, direction="fwd_bwd",
    )  # fmt: skip


def rows() -> Iterator[str]:
    """The table in Markdown."""
    yield "| tokens | mask | kernel | tiles | waves | idle: head after head | as it runs | all heads together |"
    yield "|" + "---|" * 8
    for case, kernel in product(cases(), KERNELS):
        counted = tail(case, kernel)
        idle = " | ".join(
            f"{share:.1%}" for share in (counted.idle_by_head, counted.idle, counted.idle_across)
        )
        yield f"| {case.q_len} | {case.mask} | {kernel} | {counted.tiles} | {counted.waves:.1f} | {idle} |"


if __name__ == "__main__":
    sys.stdout.write("\n".join(rows()) + "\n")
