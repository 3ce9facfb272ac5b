"""The smallest case that still fails, searched greedily: fewer heads and batch rows, shorter, plainer."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.subject import Failed, Refused, Subject
from attnbench.errors import CaseError, MaskError, ScoreError
from attnbench.problem import BlockSparse, Case, Documents, Explicit, Full, Mask, Padding
from attnbench.problem.masks import And, Not, Or

MOST_RUNS = 60  # of the backend, on ever smaller cases
MOST_SCORES = 1 << 26  # per case: a larger one is not worth several runs on a CPU


class Smallest(NamedTuple):
    """The smallest failing case, its distribution, and the observation of it if it is smaller than the first."""

    case: Case
    distribution: str
    observation: Observation | None = None


def smallest_failing(
    subject: Subject, first: Smallest, way: str, limit_s: float = math.inf, runs_at_most: int = MOST_RUNS
) -> Smallest:
    """The smallest case that fails in the same way as the first; the first itself if no smaller one does in the limits.

    The same way: with the same kind of exception, a result of the wrong form, a wrong forward, or a wrong backward
    after a right forward. A smaller case that fails otherwise shows another fault.
    """
    runs, end = 0, time.monotonic() + limit_s
    smallest = first
    if not way or first.case.rows * first.case.k_len > MOST_SCORES:
        return first
    tried = {(first.case, first.distribution)}
    shrunk = True
    while shrunk and runs < runs_at_most:
        shrunk = False
        for case, distribution in _smaller(smallest.case, smallest.distribution, subject.masks is None):
            if (case, distribution) in tried:
                continue
            if runs >= runs_at_most or time.monotonic() >= end:
                return smallest
            tried.add((case, distribution))
            runs += 1
            other, observation = run(subject, case, distribution)
            if other == way:
                smallest = Smallest(case, distribution, observation)
                shrunk = True
                break
    return smallest


def run(subject: Subject, case: Case, distribution: str) -> tuple[str, Observation | None]:
    """How a case fails, in a word or two, and the observation; empty if it is right or refused."""
    try:
        observation = observe(subject, subject.inputs(case, distribution))
    except Refused:
        return "", None
    except Failed as failure:
        return first_words(str(failure)), None
    return observation.way_of_failing, observation


def first_words(reason: str) -> str:
    """The kind of an exception: `raises RuntimeError:`, `gives a`."""
    return " ".join(reason.split()[:2])


def _smaller(case: Case, distribution: str, other_masks: bool) -> Iterator[tuple[Case, str]]:
    """Smaller or plainer cases, the largest steps first."""
    plainer = []
    if distribution != "randn":
        plainer.append((case, "randn"))
    changes: list[dict[str, object]] = []
    if case.scores:
        changes.append({"scores": ()})
        changes += [{"scores": tuple(s for s in case.scores if s is not one)} for one in case.scores[1:]]
    if case.layout != "bhsd":
        changes.append({"layout": "bhsd"})
    if case.needs_backward:
        changes.append({"direction": "fwd"})
    if case.scale is not None:
        changes.append({"scale": None})
    changes += [{"batch": size} for size in (1, 2) if size < case.batch]
    # A function that is checked under one kind of mask may ignore masks altogether.
    changes += [{"mask": mask} for mask in _plainer_masks(case.mask)] if other_masks else []
    if case.group > 1:
        changes += [{"q_heads": case.group, "kv_heads": 1}, {"kv_heads": case.q_heads}]
    if case.kv_heads > 1:
        fewer = case.kv_heads // 2
        changes += [
            {"q_heads": case.group, "kv_heads": 1},
            {"q_heads": case.group * fewer, "kv_heads": fewer},
        ]
    for length in (4, 16, 64, 65, 128):
        if length < max(case.q_len, case.k_len):
            q_len, k_len = min(case.q_len, length), min(case.k_len, length)
            changes.append({"q_len": q_len, "k_len": k_len})
    changes += [{"q_len": case.q_len // 2}] if case.q_len > 1 else []
    changes += [{"k_len": case.k_len // 2}] if case.k_len > 1 else []
    changes += [{"q_len": case.q_len - 1}, {"k_len": case.k_len - 1}]
    if case.v_dim != case.head_dim:
        changes.append({"v_dim": case.head_dim})
    changes += [
        {"head_dim": dim, "v_dim": dim} for dim in (16, 32, 64) if dim < max(case.head_dim, case.v_dim)
    ]
    yield from plainer
    for change in changes:
        try:
            sizes = {
                name: change.get(name, getattr(case, name)) for name in ("batch", "q_heads", "q_len", "k_len")
            }
            mask = fitted(change.get("mask", case.mask), **sizes)  # type: ignore[arg-type]
            yield replace(case, **(change | {"mask": mask})), distribution  # type: ignore[arg-type]
        except (CaseError, MaskError, ScoreError):
            continue


def _plainer_masks(mask: Mask) -> list[Mask]:
    if isinstance(mask, And | Or):
        return [Full(), mask.left, mask.right]
    if isinstance(mask, Not):
        return [Full(), mask.mask]
    return [] if isinstance(mask, Full) else [Full()]


def fitted(mask: Mask, batch: int, q_heads: int, q_len: int, k_len: int) -> Mask:
    """The mask, its lengths and tables cut to smaller sizes."""
    if isinstance(mask, And | Or):
        left, right = (fitted(part, batch, q_heads, q_len, k_len) for part in (mask.left, mask.right))
        return type(mask)(left, right)
    if isinstance(mask, Not):
        return Not(fitted(mask.mask, batch, q_heads, q_len, k_len))
    if isinstance(mask, Padding) and len(mask.lengths) > 1:
        return Padding(tuple(min(length, k_len) for length in mask.lengths[:batch]), mask.side)
    if isinstance(mask, Padding):
        return Padding((min(mask.lengths[0], k_len),), mask.side)
    if isinstance(mask, Explicit):
        return Explicit(mask.array[:batch, :q_heads, :q_len, :k_len])
    if isinstance(mask, BlockSparse) and mask.blocks.shape[0] > 1:
        return BlockSparse(mask.blocks[:q_heads].astype(int).tolist(), mask.block)
    if isinstance(mask, Documents):
        return _cut_documents(mask, q_len)
    return mask


def _cut_documents(mask: Documents, length: int) -> Mask:
    def cut(lengths: tuple[int, ...]) -> tuple[int, ...]:
        kept, left = [], length
        for each in lengths:
            kept.append(min(each, left))
            left -= kept[-1]
        return tuple(kept)

    nested = mask.lengths and isinstance(mask.lengths[0], tuple)
    return Documents(tuple(cut(row) for row in mask.lengths) if nested else cut(mask.lengths))  # type: ignore[arg-type]
