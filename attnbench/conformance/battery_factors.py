"""The values that a case of the battery may take: lengths, heads, masks, score changes, each there for a bug."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import combinations, product
from typing import Any

import numpy as np

from attnbench.backend.interface import Capabilities
from attnbench.problem import (
    MASK_KINDS,
    ALiBi,
    Bias,
    BlockSparse,
    Causal,
    Dilated,
    Documents,
    Explicit,
    Extent,
    Full,
    GlobalTokens,
    Mask,
    Padding,
    PrefixLM,
    RelativeBias,
    Score,
    Sink,
    SlidingWindow,
    Softcap,
    example_of,
    parse_mask,
)
from attnbench.problem.distributions import DISTRIBUTIONS as BY_NAME

# q_len, k_len. Tile sizes are 16 to 256: one more, one less, a tile and a half. q_len % 128 == 64 (last diagonal tile)
# and k_len % 32 == 1 (tail tile) occur. More queries than keys give rows without a key.
LENGTHS = (
    (1, 1),
    (2, 257),
    (63, 63),
    (64, 64),
    (65, 65),
    (127, 129),
    (128, 128),
    (129, 129),
    (129, 65),
    (192, 193),
    (192, 257),
    (257, 257),
    (8, 8),
)
# Lengths by family, for a battery that takes only a slice of the lengths above.
DECODE_QUERIES = (1, 2, 3, 4, 7, 8, 16)
DECODE_KEYS = (1, 17, 63, 64, 65, 127, 128, 129, 255, 256, 384, 1023, 1024, 4096, 4097, 20_000)
EQUAL = (
    *(1, 2, 8, 16, 31, 32, 33, 48, 63, 64, 65, 96, 127, 128, 129, 160),
    *(191, 192, 193, 255, 256, 257, 320, 384, 512, 513, 1024),
)
CROSS = (
    *((64, 128), (128, 64), (64, 192), (128, 256), (256, 128)),
    *((100, 300), (129, 65), (65, 129), (32, 1024), (63, 500)),
)
LENGTHS_OF_FAMILIES = (*((n, n) for n in EQUAL), *product(DECODE_QUERIES, DECODE_KEYS), *CROSS)
HEADS = ((4, 4), (6, 2), (8, 1), (5, 1), (8, 8))
# 50: no multiple of 8 (vector loads). v_dim above and below head_dim, odd and even: it may be taken for head_dim.
HEAD_DIMS = (
    *((64, 64), (128, 128), (32, 32), (40, 40), (80, 80), (96, 96), (192, 128), (256, 256)),
    *((50, 50), (64, 96), (72, 45)),
)
BATCHES = (1, 2, 3)
LAYOUTS = ("bhsd", "bshd", "qkv_packed")
SCALES = (None, None, 0.2)  # a caller's own scale in a third of the rows


@dataclass(frozen=True)
class Sizes:
    """The sizes that a mask of the battery is made for."""

    q_len: int
    k_len: int
    batch: int
    heads: int

    @property
    def narrow(self) -> int:
        return max(1, self.k_len // 5)

    @property
    def wide(self) -> int:
        return max(1, self.k_len // 3)

    def lengths(self) -> tuple[int, ...]:
        """A length per batch row: no multiple of a tile, and that of batch row 1 is 0."""
        return tuple(0 if b == 1 else max(1, self.k_len - 1 - 7 * b) for b in range(self.batch))

    def documents(self) -> tuple[int, ...]:
        """Documents with an empty one among them, and slack after the last."""
        return (max(1, self.q_len // 3), 0, max(0, self.q_len // 2 - 1))

    def documents_by_row(self) -> list[list[int]]:
        """Other documents in each batch row."""
        return [[max(1, self.q_len // (2 + b)), max(0, self.q_len // 4 - b)] for b in range(self.batch)]

    def table(self, rows: int, columns: int, per_batch: bool) -> np.ndarray:
        """A random table of 0 and 1 per batch row or per head: [B, 1, rows, columns] or [1, H, rows, columns]."""
        shape = (self.batch, 1) if per_batch and self.batch > 1 else (1, self.heads)
        # RandomState's stream is the same in all versions of numpy.
        bits = np.random.RandomState(self.q_len * 1009 + self.k_len).random_sample((*shape, rows, columns))
        return (bits < 0.6).astype(np.int64)


def _block_sparse(at: Sizes) -> Mask:
    block = 16
    return BlockSparse(
        at.table(-(-at.q_len // block), -(-at.k_len // block), per_batch=False)[0].tolist(), block
    )


MASKS: dict[str, Callable[[Sizes], Mask]] = {
    "full": lambda at: Full(),
    "causal": lambda at: Causal(),
    "causal(top_left)": lambda at: Causal("top_left"),
    "causal & window": lambda at: Causal() & SlidingWindow(at.wide, 0),
    "window": lambda at: SlidingWindow(at.wide, at.narrow),
    "padding": lambda at: Padding(at.lengths()),
    "causal & padding": lambda at: Causal() & Padding(at.lengths()),
    "padding left": lambda at: Padding(at.lengths(), "left"),
    "causal & documents": lambda at: Causal() & Documents(at.documents()),
    "documents": lambda at: Documents(at.documents()),
    "prefix": lambda at: PrefixLM(at.narrow),
    "global | window": lambda at: GlobalTokens(3) | Causal() & SlidingWindow(at.narrow, 0),
    "block_sparse": _block_sparse,
    "dilated & causal": lambda at: Dilated(3) & Causal(),
    "explicit": lambda at: Explicit(at.table(at.q_len, at.k_len, per_batch=True)),
    "~window": lambda at: ~SlidingWindow(at.narrow, at.narrow),
    "causal & explicit": lambda at: Causal() & Explicit(at.table(at.q_len, at.k_len, per_batch=False)),
    "causal & documents by row": lambda at: Causal() & Documents(at.documents_by_row()),
}


def _example(kind: str, at: Sizes) -> Mask:
    return example_of(kind, Extent(at.batch, at.heads, at.q_len, at.k_len))


# A kind that no mask above has, such as that of a new leaf, is added as the leaf's own example.
_SMALL = Sizes(64, 64, 1, 1)
_KINDS = frozenset().union(*(make(_SMALL).kinds for make in MASKS.values()))
MASKS |= {kind: partial(_example, kind) for kind in sorted(MASK_KINDS - _KINDS)}

SCORES: tuple[tuple[Score, ...], ...] = (
    (),
    (),
    (Softcap(5.0),),
    (ALiBi(),),
    (Bias("bhqk"),),
    (Bias("hqk"),),
    (Bias("bk"),),
    (RelativeBias("t5(32,128,bidirectional)"),),
    (RelativeBias("t5(16,64,causal)"),),
    (Sink(),),
    (Sink(100.0),),
    (Softcap(20.0), Bias("bhqk"), ALiBi()),
)
DISTRIBUTIONS = tuple(BY_NAME)


Makers = dict[str, Callable[[Sizes], Mask]]  # masks by name, each made for its sizes


def masks_for(words: Iterable[str] | None, capabilities: Capabilities = Capabilities()) -> Makers:
    """The battery's masks, or those that the words name, and a backend that takes no combination gets each kind alone.

    A word is a kind (the masks whose kinds are all among the words), a mask of the battery by name, or a mask's text.
    """
    if words is None:
        return MASKS if capabilities.combinations else with_single_masks(MASKS, capabilities.masks)
    words = set(words)
    kinds = words & MASK_KINDS
    makers = {name: make for name, make in MASKS.items() if make(_SMALL).kinds <= kinds or name in words}
    for text in sorted(words - MASK_KINDS - MASKS.keys()):
        mask = parse_mask(text)
        makers[text] = lambda at, mask=mask: mask  # type: ignore[misc]
    return with_single_masks(makers, kinds)


def with_single_masks(makers: Makers, kinds: Iterable[str]) -> Makers:
    """The masks, and a mask of each kind that occurs in combinations only."""
    small = [make(_SMALL) for make in makers.values()]
    alone = frozenset().union(*(mask.kinds for mask in small if not mask.is_combined), frozenset())
    return makers | {kind: partial(_example, kind) for kind in sorted(set(kinds) - alone)}


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

    def without_sink(self) -> Row:
        return replace(self, scores=tuple(score for score in self.scores if score.kind != "sink"))

    def pairs(self) -> set[tuple[Any, ...]]:
        """Every pair of values, by the names of their factors."""
        values = [(name, str(value)) for name, value in vars(self).items()]
        return set(combinations(values, 2))


# Each is there for one bug. They come before the pairwise rows, and are filtered like all others.
ALWAYS: tuple[dict[str, Any], ...] = (
    {"lengths": (64, 64), "mask": "causal"},
    {"lengths": (192, 257), "mask": "causal", "heads": (6, 2), "distribution": "negative_lse"},
    {"lengths": (257, 257), "mask": "full", "distribution": "randn", "head_dims": (128, 128), "batch": 2},
    {"lengths": (129, 65), "mask": "causal", "heads": (4, 4)},  # rows without a key
    # Raw scores a hundred times the cap: exp of them overflows.
    # The sink is not capped.
    {"lengths": (65, 65), "mask": "prefix", "scores": (Softcap(1.0), Sink()), "distribution": "large"},
    {"lengths": (65, 65), "mask": "explicit", "head_dims": (50, 50)},  # features past a multiple of 8
    # dP over v_dim features, not head_dim; a sink beside rows whose first tile of keys is masked.
    {"lengths": (65, 129), "mask": "window", "head_dims": (64, 96), "scores": (Sink(),)},
    {"lengths": (8, 8), "heads": (8, 8), "mask": "full", "head_dims": (40, 40)},  # heads == sequence length
    # Slopes of 6 heads; distances of keys ahead of the query.
    {"lengths": (127, 129), "mask": "full", "heads": (6, 2), "scores": (ALiBi(),)},
)
# Long, so few: split-KV decoding, 16-bit indices, low-precision accumulators, queries over many tiles.
LONG: tuple[dict[str, Any], ...] = (
    {"lengths": (1, 4097), "heads": (8, 1), "head_dims": (64, 64), "mask": "causal"},
    {"lengths": (2, 33_000), "heads": (1, 1), "head_dims": (32, 32), "mask": "full"},
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
    # Not long. Scores of -5e5 beside masked ones: a finite stand-in for -inf shows.
    {"lengths": (65, 65), "mask": "causal", "distribution": "huge_negative"},
)
# Lengths at which a long row with a distribution runs if its own are not taken.
LONG_INSTEAD = ((1, 20_000), (4, 4097), (16, 1023), (1024, 1024), (256, 1024), (512, 512), (256, 256))
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
# A grid past 65,535 blocks: silently skipped if it is the second or third dimension of a launch.
MANY_ROWS: dict[str, Any] = {
    **PLAIN,
    "lengths": (2, 3),
    "heads": (1, 1),
    "batch": 65537,
    "head_dims": (32, 32),
}
MASKS_OF_MANY_ROWS = ("full", "causal")  # of many rows with lengths other than the above
