"""Which problems does a backend have to solve? Shapes, masks, score changes and inputs, covered pairwise.

A product of everything would be thousands of cases. A bug shows where one or two of its conditions meet, so
the rows are chosen greedily: each next one covers the most pairs of values that no row has yet. The choice
is the same on every machine (its random numbers come from a fixed seed), and is drawn from what a backend
declares, so that a backend with two masks gets as many cases as one with eleven.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

import numpy as np

from attnbench.backend.interface import MASK_KINDS, Capabilities, declared_refusal
from attnbench.errors import AttnbenchError, CaseError, MaskError, ScoreError
from attnbench.problem import (
    ALiBi,
    Bias,
    BlockSparse,
    Case,
    Causal,
    Dilated,
    Documents,
    Explicit,
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
    parse_mask,
)
from attnbench.problem.distributions import DISTRIBUTIONS as BY_NAME

LEVELS = ("smoke", "standard", "exhaustive")
SIZES = {"smoke": 6, "standard": 30, "exhaustive": 120}  # cases a dtype
CANDIDATES = 60  # random rows looked at for each row chosen
NEW_VALUE = (
    20  # a value that no row has yet counts as that many new pairs: each is there for a bug of its own
)

# q_len, k_len. Tile sizes are 16 to 256, so one more, one less, one tile and a half; q_len % 128 == 64 and
# k_len % 32 == 1 occur (last diagonal tile, tail tile); more queries than keys gives rows without a key.
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
HEADS = ((4, 4), (6, 2), (8, 1), (5, 1), (8, 8))
HEAD_DIMS = ((64, 64), (128, 128), (32, 32), (40, 40), (80, 80), (96, 96), (192, 128), (256, 256))
BATCHES = (1, 2, 3)
LAYOUTS = ("bhsd", "bshd", "qkv_packed")
SCALES = (None, None, 0.2)  # a caller's own scale in a third of the rows


@dataclass(frozen=True)
class Sizes:
    """What a mask of the battery is made for."""

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
        """A length a batch row: no multiple of a tile, one of them 0 where there are several rows."""
        return tuple(0 if b == 1 else max(1, self.k_len - 1 - 7 * b) for b in range(self.batch))

    def documents(self) -> tuple[int, ...]:
        """Documents with an empty one among them, and slack after the last."""
        return (max(1, self.q_len // 3), 0, max(0, self.q_len // 2 - 1))

    def table(self, rows: int, columns: int, per_batch: bool) -> np.ndarray:
        """A random table of 0 and 1, one a batch row or one a head: [B, 1, rows, columns] or [1, H, ...]."""
        shape = (self.batch, 1) if per_batch and self.batch > 1 else (1, self.heads)
        # The default generator's stream is not promised across versions of numpy; this one's is.
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
}

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


@dataclass(frozen=True)
class Row:
    """One value of each factor, as places in the lists above."""

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


@dataclass(frozen=True)
class _Wanted:
    # What a battery is drawn for.
    dtype: str
    direction: str
    capabilities: Capabilities
    contract: str
    masks: dict[str, Callable[[Sizes], Mask]]
    device: str

    def case(self, row: Row) -> Case | None:
        """The row as a case, or None where its values do not go together or the backend does not take it."""
        q_len, k_len = row.lengths
        q_heads, kv_heads = row.heads
        head_dim, v_dim = row.head_dims
        # fp16 overflows where the product of q and k is kept before it is scaled, as DENSE may do.
        if row.distribution == "huge_negative" and self.dtype == "fp16" and self.contract == "dense":
            return None
        # DENSE rounds dP, which is nearly the same number all along a row here: those errors agree, and the noise
        # of `noise`, which is independent from key to key, does not hold.
        if row.distribution == "cancelling_dq" and self.contract == "dense":
            return None
        try:
            mask = self.masks[row.mask](Sizes(q_len, k_len, row.batch, q_heads))
            case = Case(
                batch=row.batch,
                q_len=q_len,
                k_len=k_len,
                q_heads=q_heads,
                kv_heads=kv_heads,
                head_dim=head_dim,
                v_dim=v_dim,
                dtype=self.dtype,  # type: ignore[arg-type]
                mask=mask,
                scores=row.scores,
                scale=row.scale,
                direction=self.direction,  # type: ignore[arg-type]
                layout=row.layout,  # type: ignore[arg-type]
            )
        except (CaseError, MaskError, ScoreError):
            return None
        if self.contract == "dense" and self.dtype == "bf16" and _winners_are_rounded(row, head_dim):
            return None
        return None if declared_refusal(self.capabilities, case, self.device) else case


def _winners_are_rounded(row: Row, head_dim: int) -> bool:
    """Whether rounding the scores to bf16 moves them by more than 1 and so decides, now and then, which key wins a row.

    That happens more seldom than the draws of the noise could see.
    """
    return row.distribution == "large" and row.scale is not None and row.scale * head_dim**0.5 > 1


def battery(
    level: str = "standard",
    dtype: str = "bf16",
    direction: str = "fwd_bwd",
    *,
    capabilities: Capabilities = Capabilities(),
    contract: str | None = None,
    masks: Iterable[str] | None = None,
    device: str = "cpu",
) -> list[tuple[Case, str]]:
    """The cases of a level, each with the name of its input distribution, that these capabilities allow.

    `masks` keeps the masks whose kinds are all among the given words; a text such as `causal & window(128,
    0)` is taken as it is. The list is the same for the same arguments, and empty where nothing fits.
    """
    if level not in LEVELS:
        raise AttnbenchError(f"no level {level!r}; take one of {', '.join(LEVELS)}")
    available = MASKS if masks is None else masks_named(masks)
    wanted = _Wanted(dtype, direction, capabilities, contract or capabilities.contract, available, device)
    rows = _rows(wanted, level)
    cases = [(wanted.case(row), row.distribution) for row in rows]
    found: dict[tuple[str, str], tuple[Case, str]] = {}
    for case, distribution in cases:
        if case is not None:
            found.setdefault((case.id, distribution), (case, distribution))
    return list(found.values())


def masks_named(words: Iterable[str]) -> dict[str, Callable[[Sizes], Mask]]:
    """The battery's masks whose kinds are all among the words, and the words that are texts of masks."""
    words = set(words)
    kinds = words & MASK_KINDS
    at = Sizes(64, 64, 1, 1)
    found = {name: make for name, make in MASKS.items() if make(at).kinds <= kinds or name in words}
    for text in sorted(words - MASK_KINDS - MASKS.keys()):
        mask = parse_mask(text)
        found[text] = lambda at, mask=mask: mask  # type: ignore[misc]
    return found


def _rows(wanted: _Wanted, level: str) -> list[Row]:
    factors = {
        "lengths": LENGTHS,
        "heads": HEADS,
        "head_dims": HEAD_DIMS,
        "batch": BATCHES,
        "mask": tuple(wanted.masks),
        "scores": SCORES,
        "layout": LAYOUTS,
        "scale": SCALES,
        "distribution": DISTRIBUTIONS,
    }
    if not wanted.masks:
        return []
    plain = _plain(wanted)
    if plain is None:
        return []
    allowed = {name: _usable(wanted, plain, name, values) for name, values in factors.items()}
    first = [replace(plain, **changes) for changes in ALWAYS]
    first += [replace(plain, **changes) for changes in LONG] if level != "smoke" else []
    first += (
        [replace(plain, **{k: v for k, v in MANY_ROWS.items() if k != "mask"})] if level != "smoke" else []
    )
    rows = [row for row in first if row.mask in wanted.masks and wanted.case(row) is not None]
    covered: set[tuple[Any, ...]] = set().union(*(row.pairs() for row in rows), set())
    seen = {value for both in covered for value in both}
    rng = random.Random(f"{level} {wanted.dtype}")
    while len(rows) < SIZES[level]:
        best: tuple[int, Row | None] = (0, None)
        for _ in range(CANDIDATES):
            row = Row(**{name: rng.choice(values) for name, values in allowed.items()})
            values = {pair for both in row.pairs() for pair in both} - seen
            gain = len(row.pairs() - covered) + NEW_VALUE * len(values)
            if gain > best[0] and wanted.case(row) is not None:
                best = (gain, row)
        if best[1] is None:
            break
        rows.append(best[1])
        covered |= best[1].pairs()
        seen |= {value for both in best[1].pairs() for value in both}
    return rows


def _plain(wanted: _Wanted) -> Row | None:
    # The simplest row that the backend takes: the first mask, and the first sizes, that go.
    for mask in wanted.masks:
        for lengths in ((128, 128), *LENGTHS):
            for heads in ((4, 4), *HEADS):
                for dims in HEAD_DIMS:
                    row = Row(
                        **{**PLAIN, "mask": mask, "lengths": lengths, "heads": heads, "head_dims": dims}
                    )
                    if wanted.case(row) is not None:
                        return row
    return None


def _usable(wanted: _Wanted, plain: Row, name: str, values: tuple[Any, ...]) -> list[Any]:
    """The values of one factor that go with the plain row (masks: with some lengths)."""
    lengths = [plain.lengths] if name == "lengths" else [plain.lengths, (129, 129)]
    usable = []
    for value in values:
        rows = [replace(plain, lengths=at) for at in lengths]
        if any(wanted.case(replace(row, **{name: value})) is not None for row in rows):
            usable.append(value)
    return usable or [getattr(plain, name)]
