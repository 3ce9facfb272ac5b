"""The rows and columns that are judged: all if that is cheap, else first, last, tile boundaries and random ones."""

from __future__ import annotations

import random
from dataclasses import dataclass

from attnbench.judge.rounding import N_RUNS
from attnbench.problem.case import Case

PAIR_RUNS = {"cpu": 1 << 23, "cuda": 1 << 28}  # noise runs times pairs, for rows and for columns each
FULL_PASS_PAIRS = {"cpu": 1 << 26, "cuda": 1 << 32}  # pairs of the pass over every row that columns need
FEWEST = 32  # rows (columns) per head that are always judged: enough for every kind of boundary
EDGES = (0, 1, 63, 64, 65, 127, 128, 129)


@dataclass(frozen=True)
class Sample:
    """Chosen indices, ascending: batch rows, key heads (with all their query heads), and rows or columns."""

    batches: list[int]
    kv_heads: list[int]
    tokens: list[int]


def chosen_tokens(length: int, count: int, rng: random.Random) -> list[int]:
    """`count` of `length` tokens: the ends, the first and last tile boundaries, then other boundaries and tokens."""
    if count >= length:
        return list(range(length))
    last_tile = (length - 1) // 128 * 128
    must = [*EDGES, length - 1, length - 2, last_tile - 1, last_tile, last_tile + 1]
    picked = sorted({t for t in must if 0 <= t < length})
    boundaries = [
        t for at in range(64, length, 64) for t in (at - 1, at, at + 1) if t < length and t not in picked
    ]
    free = max(0, count - len(picked))
    picked += rng.sample(boundaries, min(len(boundaries), free // 2))
    seen = set(picked)
    while len(seen) < count:
        seen.add(rng.randrange(length))
    return sorted(seen)


def _some(size: int, count: int, rng: random.Random) -> list[int]:
    # The last index first: the common bug is right for index 0 only.
    if count >= size:
        return list(range(size))
    ends = [size - 1, 0][:count]
    others = rng.sample(range(1, size - 1), min(count - len(ends), size - 2)) if size > 2 else []
    return sorted({*ends, *others})


def _heads(case: Case, affordable: int, rng: random.Random) -> tuple[list[int], list[int]]:
    kv = max(1, min(case.kv_heads, affordable))
    batch = max(1, min(case.batch, affordable // kv))
    return _some(case.batch, batch, rng), _some(case.kv_heads, kv, rng)


def _sums_over_heads(case: Case) -> bool:
    return case.needs_backward and any(score.gradient is not None for score in case.scores)


def chosen_rows(case: Case, device: str, rng: random.Random) -> Sample:
    """The query rows whose out, lse and dq are judged."""
    budget = PAIR_RUNS[device] // N_RUNS
    a_row = max(case.k_len, case.head_dim, case.v_dim)
    affordable = budget // (case.batch * case.q_heads * a_row)
    if affordable >= min(FEWEST, case.q_len) or _sums_over_heads(case):
        tokens = chosen_tokens(case.q_len, max(FEWEST, affordable), rng)
        return Sample(list(range(case.batch)), list(range(case.kv_heads)), tokens)
    count = min(FEWEST, case.q_len)
    batches, kv_heads = _heads(case, budget // (case.group * a_row * count), rng)
    return Sample(batches, kv_heads, chosen_tokens(case.q_len, count, rng))


def chosen_columns(case: Case, device: str, rng: random.Random) -> Sample:
    """The keys whose dk and dv are judged, and the heads of the pass over every row that they need."""
    a_head = case.group * max(case.q_len, case.head_dim, case.v_dim)
    if _sums_over_heads(case):
        batches, kv_heads = list(range(case.batch)), list(range(case.kv_heads))
    else:
        runs = PAIR_RUNS[device] // N_RUNS // (a_head * min(FEWEST, case.k_len))
        batches, kv_heads = _heads(case, min(runs, FULL_PASS_PAIRS[device] // (a_head * case.k_len)), rng)
    affordable = PAIR_RUNS[device] // N_RUNS // (a_head * len(batches) * len(kv_heads))
    tokens = chosen_tokens(case.k_len, max(FEWEST, affordable), rng)
    return Sample(batches, kv_heads, tokens)
