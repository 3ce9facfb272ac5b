"""Which rows does every battery have? The plain one, and those that are there for one bug each or are long."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Any

from attnbench.problem import ALiBi, Score


@dataclass(frozen=True)
class Row:
    """One value of each factor."""

    lengths: tuple[int, int]
    heads: tuple[int, int]
    head_dims: tuple[int, int]
    batch: int
    mask: str
    scores: tuple[Score, ...]
    layout: str
    scale: float | None
    distribution: str

    def pairs(self) -> set[tuple[Any, ...]]:
        """Every pair of values, by the names of their factors."""
        values = [(name, str(value)) for name, value in vars(self).items()]
        return set(combinations(values, 2))


# Each is there because of one bug; they are filtered like all others, and come before the pairwise rows.
ALWAYS: tuple[dict[str, Any], ...] = (
    {"lengths": (64, 64), "mask": "causal"},
    {"lengths": (192, 257), "mask": "causal", "heads": (6, 2), "distribution": "negative_lse"},
    {"lengths": (257, 257), "mask": "full", "distribution": "randn", "head_dims": (128, 128), "batch": 2},
    {"lengths": (129, 65), "mask": "causal", "heads": (4, 4)},  # rows without a key
    {"lengths": (8, 8), "heads": (8, 8), "mask": "full", "head_dims": (40, 40)},  # heads == sequence length
    {"lengths": (127, 129), "mask": "causal", "heads": (6, 2), "scores": (ALiBi(),)},  # slopes of 6 heads
)
# Long, so few: split-KV decoding, low-precision accumulators, queries over several tiles of a long sequence.
LONG: tuple[dict[str, Any], ...] = (
    {"lengths": (1, 4097), "heads": (8, 1), "head_dims": (64, 64), "mask": "causal"},
    {
        "lengths": (4, 20000),
        "heads": (2, 2),
        "head_dims": (64, 64),
        "mask": "full",
        "distribution": "sign_flipped_v",
    },
    {
        "lengths": (4, 20000),
        "heads": (2, 2),
        "head_dims": (64, 64),
        "mask": "full",
        "distribution": "near_constant_v",
    },
    {
        "lengths": (65, 2049),
        "heads": (2, 1),
        "head_dims": (64, 64),
        "mask": "causal",
        "distribution": "cancelling_dq",
    },
    {
        "lengths": (2049, 65),
        "heads": (2, 1),
        "head_dims": (64, 64),
        "mask": "full",
        "distribution": "sign_flipped_dout",
    },
)
PLAIN: dict[str, Any] = {
    "lengths": (128, 128),
    "heads": (4, 4),
    "head_dims": (64, 64),
    "batch": 1,
    "mask": "full",
    "scores": (),
    "layout": "bhsd",
    "scale": None,
    "distribution": "randn",
}
# A grid past 65,535 blocks: silently skipped where it is the second or third dimension of a launch.
MANY_ROWS: dict[str, Any] = {
    **PLAIN,
    "lengths": (2, 3),
    "heads": (1, 1),
    "batch": 65537,
    "head_dims": (32, 32),
}
