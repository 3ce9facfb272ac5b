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
    LONG,
    MANY_ROWS,
    MASKS,
    PLAIN,
    SCALES,
    SCORES,
    Row,
    Sizes,
    masks_named,
)
from attnbench.errors import AttnbenchError, CaseError, MaskError, ScoreError
from attnbench.problem import Case, Mask

LEVELS = ("smoke", "standard", "exhaustive")
SIZES = {"smoke": 6, "standard": 30, "exhaustive": 120}  # cases a dtype
CANDIDATES = 60  # random rows looked at for each row chosen
# Multiply-adds of one projection [B * S, H * D] by [H * D, H * D] in a level that has a minute: a CPU needs seconds for
# more in bf16, and every forward of a layer has four.
LARGEST_PROJECTION = 1 << 29
NEW_VALUE = 20  # pairs that a value which no row has yet counts for: each is there for a bug of its own


@dataclass(frozen=True)
class _Wanted:
    # What a battery is drawn for.
    dtype: str
    direction: str
    capabilities: Capabilities
    contract: str
    masks: dict[str, Callable[[Sizes], Mask]]
    device: str
    level: str

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
        projection = case.batch * max(q_len, k_len) * (q_heads * head_dim) ** 2
        if self.capabilities.layer_level and self.level != "exhaustive" and projection > LARGEST_PROJECTION:
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
    wanted = _Wanted(
        dtype, direction, capabilities, contract or capabilities.contract, available, device, level
    )
    rows = _rows(wanted, level)
    cases = [(wanted.case(row), row.distribution) for row in rows]
    found: dict[tuple[str, str], tuple[Case, str]] = {}
    for case, distribution in cases:
        if case is not None:
            found.setdefault((case.id, distribution), (case, distribution))
    return list(found.values())


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
