"""How far to trust the figures: agreement per tensor, the worst case, every reason, and the spread of the samples."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from attnbench.report.cells import clean, is_missing, percent
from attnbench.report.charts.matrices import error_text, why_unjudged
from attnbench.sweep.result import Result

TENSORS = ("out", "lse", "dq", "dk", "dv", "dbias")
WORST = "worst of all"


@dataclass(frozen=True)
class Cell:
    """One backend on one mask: the text and the class (its colour); `title` says it in full."""

    text: str
    kind: str
    title: str


@dataclass(frozen=True)
class Agreement:
    """One tensor's heat map: `cells[backend]` in the order of `masks`."""

    tensor: str
    masks: tuple[str, ...]
    cells: dict[str, tuple[Cell, ...]]


def agreements(table: pd.DataFrame) -> list[Agreement]:
    """A map per judged tensor, after one of the worst of all; backends that answered nothing are left out."""
    worst: dict[tuple[str, str, str], tuple[float, str]] = {}
    statuses: dict[tuple[str, str], Counter[str]] = {}
    masks: dict[str, None] = {}
    for row in table.itertuples():
        backend, mask = clean(row.backend, 60), clean(row.family, 60)
        masks[mask] = None
        statuses.setdefault((backend, mask), Counter())[str(row.status)] += 1
        for tensor, over in _errors(row):
            largest = worst.get((tensor, backend, mask))
            if largest is None or over > largest[0]:
                worst[tensor, backend, mask] = (over, clean(row.case, 120))
    judged = sorted({backend for _, backend, _ in worst})
    tensors = {tensor for tensor, _, _ in worst}
    order = [WORST, *(t for t in TENSORS if t in tensors), *sorted(tensors - {WORST, *TENSORS})]
    return [
        Agreement(
            tensor,
            tuple(masks),
            {
                b: tuple(_cell(worst.get((tensor, b, m)), statuses.get((b, m)), tensor) for m in masks)
                for b in judged
            },
        )
        for tensor in order
        if tensor in tensors
    ]


def _errors(row: Any) -> Iterable[tuple[str, float]]:
    if not is_missing(row.error_over_budget):
        yield WORST, float(row.error_over_budget)
    elif row.status == "wrong":
        yield WORST, np.inf
    for tensor, error in json.loads(row.errors).items():
        over = error.get("over_budget") if isinstance(error, dict) else None
        if isinstance(over, (int, float)):
            yield clean(tensor, 30), float(over)


def _cell(worst: tuple[float, str] | None, statuses: Counter[str] | None, tensor: str) -> Cell:
    if worst is None:
        reason = why_unjudged(statuses or Counter())
        return Cell("–" if reason == "ok" else reason, "none", "not returned" if reason == "ok" else reason)
    over, case = worst
    if over == np.inf:
        return Cell("✗ wrong", "wrong", f"{tensor}: wrong without an error to measure, on {case}")
    title = f"{tensor}: {error_text(over)} of what is allowed, at worst on {case}"
    if over > 1:
        return Cell(f"✗ {error_text(over)}", "wrong", title)
    return Cell(error_text(over), f"right{min(3, int(over * 4))}", title)


@dataclass(frozen=True)
class Furthest:
    """The result furthest from exact attention, `distance` in words. `command` judges it again."""

    backend: str
    case: str
    is_wrong: bool
    distance: str
    reason: str
    tensors: tuple[tuple[str, str], ...]
    command: str


def furthest_off(results: Iterable[Result]) -> Result | None:
    """The wrong result with the largest error, else the right one that uses most of its budget.

    A result that is wrong without an error (it changes its inputs) comes after those that have one.
    """
    judged = [r for r in results if r.status == "wrong" or (r.status == "ok" and r.error_over_budget)]
    return max(judged, key=lambda r: (r.status == "wrong", r.error_over_budget or 0.0), default=None)


def furthest(result: Result | None) -> Furthest | None:
    """What the page shows of it."""
    if result is None:
        return None
    tensors = []
    for name, error in result.errors.items():
        at = error.get("worst")
        place = f" at {at}" if at is not None else ""
        tensors.append((clean(name, 30), clean(f"{error_text(error.get('over_budget') or 0.0)}{place}", 120)))
    return Furthest(
        clean(result.backend, 60),
        clean(result.case_id),
        result.status == "wrong",
        _distance(result),
        clean(result.reason),
        tuple(tensors),
        command_for(result),
    )


def _distance(result: Result) -> str:
    if result.error_over_budget is None:
        return "wrong"
    over = error_text(result.error_over_budget)
    if result.status == "wrong":
        return f"{over} times what is allowed, so it is wrong"
    return f"{over} of what is allowed, so it is right"


def command_for(result: Result) -> str:
    """The command that draws a result's errors again, quoted for a shell."""
    case = {name: value for name, value in result.case.items() if value not in (None, [], "")}
    words = ["attnbench", "show", json.dumps(case), "--backend", result.backend, "--seed", str(result.seed)]
    words += ["--distribution", result.distribution] if result.distribution != "randn" else []
    words += ["--contract", result.contract] if result.contract else []
    return clean(shlex.join(words), 2000)


@dataclass(frozen=True)
class Noise:
    """One backend's spread per timed pass: half the 10 % to 90 % span over the median, as shares."""

    backend: str
    passes: int
    low: float
    median: float
    high: float
    largest: float
    largest_on: str
    notes: int


def noises(table: pd.DataFrame) -> list[Noise]:
    """The spread of each backend's samples, the smallest first."""
    spreads = []
    for backend, group in table[table["status"] == "ok"].groupby("backend", sort=False):
        spans = {p: group[f"{p}_high_ms"] - group[f"{p}_low_ms"] for p in ("fwd", "bwd")}
        shares = np.concatenate([spans[p] / 2 / group[f"{p}_median_ms"] for p in spans])  # NaN: not timed
        timed = shares[~np.isnan(shares)]
        if not timed.size:
            continue
        low, median, high = np.quantile(timed, (0.1, 0.5, 0.9)).tolist()
        largest_on = clean(group["case"].iloc[int(np.nanargmax(shares)) % len(group)], 120)
        noted = int(group["notes"].map(len).gt(0).sum())
        one = Noise(clean(backend, 60), timed.size, low, median, high, float(timed.max()), largest_on, noted)
        spreads.append(one)
    return sorted(spreads, key=lambda n: n.median)


def remarks(table: pd.DataFrame, most: int = 20) -> list[tuple[str, int, str]]:
    """The notes of the sweep: the text, how often, on which backends."""
    texts: dict[str, Counter[str]] = {}
    for backend, notes in zip(table["backend"], table["notes"], strict=True):
        for note in notes:
            texts.setdefault(clean(note, 200), Counter())[clean(backend, 60)] += 1
    lines = [(text, sum(count.values()), ", ".join(sorted(count)[:6])) for text, count in texts.items()]
    return sorted(lines, key=lambda line: -line[1])[:most]


def clocks(environments: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The clocks of the machines: governor, boost, locked or not; as label and text."""
    texts: dict[str, str] = {}
    for environment in environments:
        policy = environment.get("clock_policy")
        for name, value in (policy if isinstance(policy, dict) else {}).items():
            if not isinstance(value, (dict, list, bool)) and value is not None:
                texts[clean(name, 40).replace("_", " ")] = clean(value, 80)
    return list(texts.items())


def spread_text(noise: Noise) -> tuple[str, str, str, str]:
    """Small, typical, wide and largest spread as texts."""
    return tuple(f"±{percent(x)}" for x in (noise.low, noise.median, noise.high, noise.largest))  # type: ignore[return-value]
