"""Cases for a backend that refuses much of the ordinary battery, drawn from what it has taken so far.

A refusal is information. From one accepted row outwards, one factor at a time, the drawing learns which values of each
factor the backend takes. It then covers pairs of accepted values, as the ordinary battery covers pairs of all values.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice, product
from typing import Any

from attnbench.conformance.battery import CANDIDATES, NEW_VALUE, Request
from attnbench.conformance.battery_factors import (
    ALWAYS,
    BATCHES,
    DISTRIBUTIONS,
    HEAD_DIMS,
    HEADS,
    LAYOUTS,
    LENGTHS_OF_FAMILIES,
    PLAIN,
    SCALES,
    SCORES,
    Row,
)
from attnbench.problem import Case

MORE_HEADS = (*HEADS, (8, 2), (8, 4), (12, 3), (2, 1), (1, 1), (2, 2), (3, 3), (16, 2), (16, 16), (32, 8))
MODEL_HEADS = ((12, 12), (32, 32), (28, 4), (40, 8), (64, 8), (128, 1))  # that a kernel may be built for
MORE_HEAD_DIMS = (
    *HEAD_DIMS,
    *(
        (16, 16),
        (48, 48),
        (112, 112),
        (24, 24),
        (50, 50),
        (64, 96),
        (96, 64),
        (128, 64),
        (64, 33),
        (576, 512),
    ),
)
MORE_BATCHES = (*BATCHES, 4, 5, 7, 8, 16, 17)
# Rows from which learning may start, the likeliest first: sizes of common kernels with the first masks, then all masks.
PROBE_LENGTHS = (
    *((128, 128), (1, 128), (256, 256), (64, 64), (1, 1024)),
    *((512, 512), (1, 1), (16, 16), (128, 256), (1024, 1024)),
)
# Equal lengths that models fix: windows, texts, patches, sound.
FIXED = (49, 77, 100, 129, 196, 197, 300, 384, 1500, 2048)
MOST_NUMBERS, LARGEST_NUMBER = 8, 4096  # taken from the words of refusals and conditions
PROBE_HEADS = ((4, 4), (8, 2), (8, 8), (8, 1))
PROBE_DIMS = ((64, 64), (128, 128), (32, 32), (80, 80))
FIRST_MASKS = 4
# Inputs that show faults of accumulators, maxima and rescaling, at the longest lengths that are taken.
SENSITIVE = (
    *("near_constant_v", "sign_flipped_v", "negative_lse", "rising"),
    *("positive", "large", "cancelling_dq", "sink_key", "constant_v"),
)
MOST_SCORES = 1 << 19  # of a row with a sensitive distribution
MOST_MISSES = 25  # refused rows in succession, after which the domain counts as covered


@dataclass
class Narrow:
    """Rows that a backend takes. `computes(case)` asks it; `words(case)` are those with which it refused a case.

    `values` are the accepted values of each factor; `turned_down` the rows that differ from the anchor in one factor
    whose value is not accepted: the factor, the row and its case.
    """

    request: Request
    computes: Callable[[Case], bool]
    words: Callable[[Case], str] = lambda case: ""
    where_text: str = ""
    values: dict[str, list[Any]] = field(default_factory=dict)
    turned_down: list[tuple[str, Row, Case]] = field(default_factory=list)
    numbers: tuple[int, ...] = ()

    def further(self, accepted: list[Row], wanted: int) -> Iterator[tuple[Row, Case]]:
        """Up to `wanted` more rows that the backend computes, with their cases, beyond the accepted ordinary ones."""
        if wanted <= 0:
            return
        anchor = min(accepted, key=_plainness, default=None) or self.anchor()
        if anchor is None:
            return
        for row in islice(self.rows(anchor, accepted), wanted):
            case = self.request.case(row)
            if case is not None:
                yield row, case

    def accepts(self, row: Row) -> bool:
        """Whether the row is a case, and one that the backend computes."""
        case = self.request.case(row)
        return case is not None and self.computes(case)

    def anchor(self) -> Row | None:
        """The first of the probe rows that is accepted; then of rows with the numbers that refusals mention."""
        masks = tuple(self.request.masks)
        probes = [
            *product(PROBE_LENGTHS, masks[:FIRST_MASKS], PROBE_DIMS, PROBE_HEADS),
            *product(PROBE_LENGTHS[:4], masks[FIRST_MASKS:], PROBE_DIMS[:2], PROBE_HEADS[:2]),
        ]
        few = PROBE_LENGTHS[:2], masks[:2]
        probes += product(*few, MORE_HEAD_DIMS, PROBE_HEADS)
        probes += product(*few, PROBE_DIMS[:2], (*MORE_HEADS, *MODEL_HEADS))
        probes += product(((n, n) for n in FIXED), masks[:FIRST_MASKS], PROBE_DIMS[:2], PROBE_HEADS[:1])
        refused: dict[str, None] = {}  # words
        for probe in probes:
            row = _probe(*probe)
            if self.accepts(row):
                return row
            case = self.request.case(row)
            refused |= {} if case is None else {self.words(case): None}
        self.numbers = _numbers(" ".join((self.where_text, self.request.capabilities.where, *refused)))
        dims = (*PROBE_DIMS[:2], *((n, n) for n in self.numbers if n <= 512))
        heads = (*PROBE_HEADS[:2], (1, 1), *((n, n) for n in self.numbers if n <= 128))
        more = product(_lengths_of(self.numbers), masks[:FIRST_MASKS], dims, heads)
        return next((row for probe in more if self.accepts(row := _probe(*probe))), None)

    def typical(self) -> Row | None:
        """An accepted row with several batch rows, several heads and up to 257 keys, as far as these are accepted."""
        row = self.anchor()
        if row is None:
            return None
        self.learn(row)
        wanted: dict[str, list[Any]] = {
            "batch": [batch for batch in self.values["batch"] if batch > 1],
            "heads": sorted((heads for heads in self.values["heads"] if heads[0] > 1), reverse=True),
            "lengths": sorted(
                (pair for pair in self.values["lengths"] if pair[1] <= 257), key=lambda p: -p[1]
            ),
        }
        for name, values in wanted.items():
            rows = (replace(row, **{name: value}) for value in values[:3])
            row = next((other for other in rows if self.accepts(other)), row)
        return row

    def spread(self) -> tuple[tuple[int, int], ...]:
        """Of the accepted lengths (after `typical`) up to 257: most queries and keys, few queries, as many as keys."""
        short = sorted(pair for pair in self.values["lengths"] if max(pair) <= 257)
        chosen = [short[-1:], [pair for pair in short if pair[1] > 32][:1]]
        chosen += [[pair for pair in short if pair[0] == pair[1]][-1:]]
        return tuple(dict.fromkeys(pair for pairs in chosen for pair in pairs))

    def learn(self, anchor: Row) -> None:
        """Find the accepted values of each factor, all others being the anchor's."""
        factors: dict[str, tuple[Any, ...]] = {
            "lengths": (*LENGTHS_OF_FAMILIES, *_lengths_of(self.numbers)),
            "heads": MORE_HEADS,
            "head_dims": (*MORE_HEAD_DIMS, *((n, n) for n in self.numbers if n <= 512)),
            "batch": MORE_BATCHES,
            "mask": tuple(self.request.masks),
            "scores": tuple(dict.fromkeys(SCORES)),
            "layout": LAYOUTS,
            "scale": tuple(dict.fromkeys(SCALES)),
            "distribution": DISTRIBUTIONS,
        }
        for name, candidates in factors.items():
            self.values[name] = [getattr(anchor, name)]
            for value in candidates:
                row = replace(anchor, **{name: value})
                case = self.request.case(row)
                if case is None or row == anchor:
                    continue
                if self.computes(case):
                    self.values[name].append(value)
                else:
                    self.turned_down.append((name, row, case))

    def rows(self, anchor: Row, rows: list[Row]) -> Iterator[Row]:
        """Accepted rows beyond `rows`: sensitive inputs, corners, then uncovered pairs of accepted values."""
        self.learn(anchor)
        rows = list(rows)
        for row in (*self._without_sink(anchor), *self._corners(anchor), *self._sensitive(anchor)):
            if row not in rows and self.accepts(row):
                rows.append(row)
                yield row
        covered: set[tuple[Any, ...]] = set().union(*(row.pairs() for row in rows), set())
        covered_values = {value for both in covered for value in both}
        rng = random.Random(f"{self.request.level} {self.request.dtype} narrow")
        misses = 0
        while misses < MOST_MISSES:
            candidates = [
                Row(**{name: rng.choice(values) for name, values in self.values.items()})
                for _ in range(CANDIDATES)
            ]
            gain, best = max(
                ((_gain(row, covered, covered_values), row) for row in candidates), key=lambda pair: pair[0]
            )
            if gain == 0 or not self.accepts(best):
                misses += 1
                continue
            misses = 0
            covered |= best.pairs()
            covered_values |= {value for both in best.pairs() for value in both}
            yield best

    def _corners(self, anchor: Row) -> Iterator[Row]:
        """Grouped heads, several batch rows and ragged key lengths, each in a plain row."""
        grouped = [heads for heads in self.values["heads"] if 1 < heads[1] < heads[0]]
        ragged = [pair for pair in self.values["lengths"] if pair[1] % 16 and pair[1] > 16]
        few, most = (max(b for b in self.values["batch"] if b <= limit) for limit in (3, 1 << 30))
        if grouped:
            yield replace(anchor, heads=grouped[0], batch=few)
        for lengths in (*ragged[:2], *ragged[-1:]):
            yield replace(anchor, lengths=lengths, batch=few)
        yield replace(anchor, batch=most)

    def _without_sink(self, anchor: Row) -> Iterator[Row]:
        """The rows that are always there and have a sink, without it: each is there for another bug as well."""
        for changes in ALWAYS:
            row = replace(anchor, **changes)
            if "scores" in changes and row.without_sink() != row and row.mask in self.request.masks:
                yield row.without_sink()

    def _sensitive(self, anchor: Row) -> Iterator[Row]:
        """Each sensitive distribution at the longest lengths."""
        fitting = [
            (q_len, k_len)
            for q_len, k_len in self.values["lengths"]
            if q_len * k_len * anchor.heads[0] <= MOST_SCORES
        ]
        longest = max(fitting, key=lambda pair: (pair[1], pair[0]), default=anchor.lengths)
        for distribution in SENSITIVE:
            if distribution in self.values["distribution"]:
                yield replace(anchor, lengths=longest, distribution=distribution)


def _probe(lengths: Any, mask: str, dims: Any, heads: Any) -> Row:
    return Row(**{**PLAIN, "lengths": lengths, "mask": mask, "head_dims": dims, "heads": heads})


def _numbers(text: str) -> tuple[int, ...]:
    """The first whole numbers of a text that may be lengths or head dims: `300 tokens, head dim 48` has both."""
    numbers = (int(digits) for digits in re.findall(r"\d+", text))
    return tuple(dict.fromkeys(n for n in numbers if 1 < n <= LARGEST_NUMBER))[:MOST_NUMBERS]


def _lengths_of(numbers: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Lengths that a refusal or condition with these numbers may leave: these, their multiples, and few queries."""
    lengths = [pair for n in numbers for pair in ((n, n), (1, n), (n, 2 * n), (2 * n, 2 * n), (3 * n, 3 * n))]
    lengths += [pair for n in numbers for pair in ((1, 2 * n), (1, 3 * n), (n, n - 1), (n, n + 1))]
    return tuple(dict.fromkeys(pair for pair in lengths if max(pair) <= LARGEST_NUMBER))


def _gain(row: Row, covered: set[tuple[Any, ...]], values: set[Any]) -> int:
    new_values = {pair for both in row.pairs() for pair in both} - values
    return len(row.pairs() - covered) + NEW_VALUE * len(new_values)


def _plainness(row: Row) -> int:
    """How many factors of the row differ from the plain ones: the plainest row is the best anchor."""
    return sum(getattr(row, name) != value for name, value in PLAIN.items())
