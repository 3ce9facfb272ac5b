"""The cases of a level: shapes, masks, score changes and inputs, covered pairwise.

A full product would be thousands of cases. A bug shows when one or two of its conditions meet, so rows are chosen
greedily: each next row covers the most pairs of values that no row has yet. The choice is the same on every machine
(its random numbers come from a fixed seed). It is drawn from what a backend declares, so that a backend with two masks
gets as many cases as one with eleven; what a backend refuses without declaring it is replaced in `narrow`.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from attnbench.backend.interface import Capabilities, declared_refusal
from attnbench.conformance.battery_factors import (
    ALWAYS,
    BATCHES,
    DISTRIBUTIONS,
    HEAD_DIMS,
    HEADS,
    LAYOUTS,
    LENGTHS,
    LENGTHS_OF_FAMILIES,
    LONG,
    LONG_INSTEAD,
    MANY_ROWS,
    MASKS_OF_MANY_ROWS,
    PLAIN,
    SCALES,
    SCORES,
    Row,
    Sizes,
    masks_for,
)
from attnbench.errors import AttnbenchError, CaseError, MaskError, ScoreError
from attnbench.judge.contracts import is_beyond
from attnbench.problem import Case, Mask

LEVELS = ("smoke", "standard", "exhaustive")
SIZES = {"smoke": 6, "standard": 30, "exhaustive": 120}  # cases per dtype
CANDIDATES = 60  # random rows compared per row chosen
# Multiply-adds of one projection [B * S, H * D] by [H * D, H * D] in a level that has a minute: a CPU needs seconds for
# more in bf16, and a layer's forward has four.
LARGEST_PROJECTION = 1 << 29
FEWEST_LENGTHS = 6  # of LENGTHS that are taken; with fewer, the lengths of families are drawn from too
MOST_PAIRS = 1 << 17  # of a query and a key, among the lengths of families
NEW_VALUE = 20  # a value that no row has yet counts for so many pairs: each is there for a bug of its own


@dataclass(frozen=True)
class Request:
    """The backend, dtype, direction and masks that a battery is drawn for."""

    dtype: str
    direction: str
    capabilities: Capabilities
    contract: str
    masks: dict[str, Callable[[Sizes], Mask]]
    device: str
    level: str
    where: Callable[[Case], bool] | None = None

    def case(self, row: Row) -> Case | None:
        """The row as a case, or None if its values do not go together or the backend declares that it refuses them."""
        q_len, k_len = row.lengths
        q_heads, kv_heads = row.heads
        head_dim, v_dim = row.head_dims
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
        projection = case.batch * max(q_len, k_len) * (q_heads * head_dim) ** 2
        if self.capabilities.layer_level and self.level != "exhaustive" and projection > LARGEST_PROJECTION:
            return None
        if is_beyond(self.contract, case, row.distribution):
            return None
        if self.where is not None and not self.where(case):
            return None
        return None if declared_refusal(self.capabilities, case, self.device) else case


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
    """The cases of a level that these capabilities allow, each with the name of its input distribution.

    `masks` keeps the masks whose kinds are all among the given words; a text such as `causal & window(128, 0)` is taken
    as it is. The same arguments give the same list; it is empty if nothing fits. Raises AttnbenchError.
    """
    makers = masks_for(masks, capabilities)
    request = Request(
        dtype, direction, capabilities, contract or capabilities.contract, makers, device, level
    )
    return [(case, row.distribution) for row, case in ordinary(request)]


def ordinary(request: Request) -> list[tuple[Row, Case]]:
    """The rows of the request's level, each with its case, none twice."""
    if request.level not in LEVELS:
        raise AttnbenchError(f"no level {request.level!r}; take one of {', '.join(LEVELS)}")
    cases: dict[tuple[str, str], tuple[Row, Case]] = {}
    for row in _rows(request, request.level):
        case = request.case(row)
        if case is not None:
            cases.setdefault((case.id, row.distribution), (row, case))
    return list(cases.values())


def _rows(request: Request, level: str) -> list[Row]:
    factors = {
        "lengths": LENGTHS,
        "heads": HEADS,
        "head_dims": HEAD_DIMS,
        "batch": BATCHES,
        "mask": tuple(request.masks),
        "scores": SCORES,
        "layout": LAYOUTS,
        "scale": SCALES,
        "distribution": DISTRIBUTIONS,
    }
    if not request.masks:
        return []
    plain = _plain(request)
    if plain is None:
        return []
    allowed = {name: _usable(request, plain, name, values) for name, values in factors.items()}
    if len(allowed["lengths"]) < FEWEST_LENGTHS:
        lengths = (*LENGTHS, *(pair for pair in LENGTHS_OF_FAMILIES if pair[0] * pair[1] <= MOST_PAIRS))
        allowed["lengths"] = _usable(request, plain, "lengths", tuple(dict.fromkeys(lengths)))
    first = [_fitting(request, replace(plain, **changes), turn) for turn, changes in enumerate(ALWAYS)]
    if level != "smoke":
        first += [
            _fitting(request, replace(plain, **changes), turn, LONG_INSTEAD)
            for turn, changes in enumerate(LONG)
        ]
        first += [_many(request, plain)]
    rows = [row for row in first if row.mask in request.masks and request.case(row) is not None]
    covered: set[tuple[Any, ...]] = set().union(*(row.pairs() for row in rows), set())
    seen = {value for both in covered for value in both}
    rng = random.Random(f"{level} {request.dtype}")
    while len(rows) < SIZES[level]:
        best: tuple[int, Row | None] = (0, None)
        masks = _masks_to_cover(request, allowed["mask"], rows)
        for _ in range(CANDIDATES):
            row = Row(**{name: rng.choice(values) for name, values in (allowed | {"mask": masks}).items()})
            values = {pair for both in row.pairs() for pair in both} - seen
            gain = len(row.pairs() - covered) + NEW_VALUE * len(values)
            if gain > best[0] and request.case(row) is not None:
                best = (gain, row)
        if best[1] is None:
            break
        rows.append(best[1])
        covered |= best[1].pairs()
        seen |= {value for both in best[1].pairs() for value in both}
    return rows


def _masks_to_cover(request: Request, masks: list[str], rows: list[Row]) -> list[str]:
    """The masks of a kind that no row has yet, else those that no row has, else all: there are few rows per mask."""
    at = Sizes(64, 64, 1, 1)
    kinds = frozenset().union(*(request.masks[row.mask](at).kinds for row in rows), frozenset())
    taken = {row.mask for row in rows}
    new_kinds = [mask for mask in masks if not request.masks[mask](at).kinds <= kinds]
    return new_kinds or [mask for mask in masks if mask not in taken] or masks


def _fitting(request: Request, row: Row, turn: int, other_lengths: tuple[tuple[int, int], ...] = ()) -> Row:
    """The row, without its sink or with the next mask if these are not taken; with a distribution, at other lengths."""
    names = list(request.masks)
    names = names[turn % len(names) :] + names[: turn % len(names)]
    masks = sorted(names, key=lambda mask: mask != row.mask)
    if row.distribution == PLAIN["distribution"]:
        other_lengths = ()
    others = (
        replace(other, lengths=lengths, mask=mask)
        for lengths in (row.lengths, *other_lengths)
        for mask in masks
        for other in (row, row.without_sink())
    )
    return next((other for other in others if request.case(other) is not None), row)


def _many(request: Request, plain: Row) -> Row:
    """A row of more batch rows than a launch may have blocks in its second dimension."""
    row = replace(plain, **{name: value for name, value in MANY_ROWS.items() if name != "mask"})
    if request.case(row) is None and row.mask in MASKS_OF_MANY_ROWS:
        return replace(row, lengths=(2, 2))
    return row


def _plain(request: Request) -> Row | None:
    """The simplest row that is a case: the first mask and the first sizes that fit."""
    for mask in request.masks:
        for lengths in ((128, 128), *LENGTHS):
            for heads in ((4, 4), *HEADS):
                for dims in HEAD_DIMS:
                    row = Row(
                        **{**PLAIN, "mask": mask, "lengths": lengths, "heads": heads, "head_dims": dims}
                    )
                    if request.case(row) is not None:
                        return row
    return None


def _usable(request: Request, plain: Row, name: str, values: tuple[Any, ...]) -> list[Any]:
    """The values of one factor that go with the plain row (masks: with one of two lengths)."""
    lengths = [plain.lengths] if name == "lengths" else [plain.lengths, (129, 129)]
    usable = []
    for value in values:
        rows = [replace(plain, lengths=at) for at in lengths]
        if any(request.case(replace(row, **{name: value})) is not None for row in rows):
            usable.append(value)
    return usable or [getattr(plain, name)]
