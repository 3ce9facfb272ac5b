"""The exact number of pairs of a mask, counted from its spans at any length in bounded memory.

`dilated(s)` has k_len / s ranges per row, too many to list. With the truth of every `dilated` leaf fixed, the rest
of the mask has few ranges, and the keys of a range with `(p - j) % m == 0` are counted by division. Inclusion and
exclusion fixes the leaves: for each set S of leaves and each subset T that holds, a term counts `mask with T` on the
keys of modulus lcm(S) with the sign (-1)^|S - T|. No residue is enumerated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from attnbench.problem.spans import Ints

if TYPE_CHECKING:
    from attnbench.problem.masks import Extent, Mask

ROWS_AT_ONCE = 1 << 16
SPANS_AT_ONCE = 1 << 21


class Term(NamedTuple):
    """`sign` times the pairs of `mask` whose distance p - j is a multiple of `modulus`."""

    sign: int
    modulus: int
    mask: Mask


def terms(mask: Mask) -> list[Term]:
    """The signed terms, without `dilated` leaves, whose pair counts add up to the mask's in any region."""
    mask = mask.simplified()
    steps = sorted(mask.dilations)
    signs: dict[tuple[int, Mask], int] = {}
    for subset in _subsets(steps):
        modulus = math.lcm(*subset)
        for holding in _subsets(subset):
            fixed = mask.with_dilations(frozenset(holding)).simplified()
            sign = -1 if (len(subset) - len(holding)) % 2 else 1
            signs[modulus, fixed] = signs.get((modulus, fixed), 0) + sign
    return [Term(sign, modulus, m) for (modulus, m), sign in signs.items() if sign and not m.is_never]


def count_pairs(mask: Mask, extent: Extent) -> int:
    """The exact number of pairs over batch and heads; raises MaskError if the mask does not fit."""
    mask.check(extent)
    total = 0
    for sign, modulus, part in terms(mask):
        heads = range(extent.heads) if part.varies_over_heads else range(1)
        batches = range(extent.batch) if part.varies_over_batch else range(1)
        same = Counter(part.batch_key(b) for b in batches)
        first = {part.batch_key(b): b for b in reversed(batches)}
        for key, times in same.items():
            counted = sum(_count(part, extent, first[key], h, modulus) for h in heads)
            total += sign * counted * times * (extent.batch // len(batches)) * (extent.heads // len(heads))
    return total


def row_chunks(extent: Extent, most_spans: int, multiple_of: int = 1) -> Iterator[Ints]:
    """The query rows in chunks of bounded memory, at `most_spans` ranges per row, cut at `multiple_of`."""
    fitting = min(ROWS_AT_ONCE, SPANS_AT_ONCE // most_spans)
    size = max(1, fitting // multiple_of) * multiple_of
    for start in range(0, extent.q_len, size):
        yield np.arange(start, min(start + size, extent.q_len), dtype=np.int64)


def multiples(starts: Ints, ends: Ints, p: Ints, modulus: int) -> Ints:
    """The number of keys j in each range [start, end) with (p - j) % modulus == 0."""
    return (ends - 1 - p) // modulus - (starts - 1 - p) // modulus


def _count(mask: Mask, extent: Extent, b: int, h: int, modulus: int) -> int:
    total = 0
    for rows in row_chunks(extent, mask.max_spans(extent)):
        starts, ends = mask.spans(extent, b, h, rows)
        if modulus == 1:
            total += int(ends.sum()) - int(starts.sum())
        else:
            total += int(multiples(starts, ends, rows[:, None] + extent.shift, modulus).sum())
    return total


def _subsets(steps: list[int] | tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for size in range(len(steps) + 1):
        yield from combinations(steps, size)
