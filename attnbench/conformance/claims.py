"""Claims to the bit, measured: the same bits in every call, in any batch, at any length, and when decoding.

The forward is compared; `bitwise_repeatable_backward`: out, dq, dk and dv.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product
from typing import Any

from attnbench.conformance.comparisons import (
    COMPARISONS,
    FEW,
    FEW_ON_GPU,
    MANY,
    MANY_ON_GPU,
    WITHOUT,
    Tensors,
    repeated,
)
from attnbench.conformance.properties.property import first_difference
from attnbench.conformance.subject import Subject
from attnbench.problem import Case

SAME, DIFFERS, NOT_ASKED = "no difference on this machine", "differs on this machine", "not asked"
REPEATS = 20  # calls of a case that is only repeated
REPEATS_INTERPRETED = 4  # an interpreter runs its programs in one order
CAUSES = {
    "bitwise_repeatable_forward": "out is added up in another order from call to call (atomic adds), or a race",
    "bitwise_repeatable_backward": "gradients are added up in another order from call to call (atomic adds), or a race",
    "batch_invariant": "the kernel, its tiles or its splits of the keys depend on the batch size or the longest row",
    "length_invariant": "the kernel, its tiles or its splits of the keys depend on the length",
    "decode_equals_prefill": "few queries take another kernel, other tiles or other splits of the keys than many",
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first element that differs: of which case, tensor and index, and in words."""

    case: Case
    tensor: str
    worst: tuple[int, ...]
    words: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim, measured in one dtype: `calls` compared (0: not asked, for this `reason`), and what differs first.

    `differing` counts the calls that differ.
    """

    name: str
    dtype: str
    is_claimed: bool
    calls: int = 0
    differing: int = 0
    difference: Difference | None = None
    reason: str = ""

    @property
    def told(self) -> str:
        """SAME, DIFFERS or NOT_ASKED."""
        if not self.calls:
            return NOT_ASKED
        return SAME if self.difference is None else DIFFERS

    @property
    def words(self) -> str:
        """What stands after the claim's name: in how many calls, and what differs first, or why it is not asked."""
        if not self.calls:
            return f": {self.reason}"
        calls = f"{self.calls} calls" if self.calls > 1 else "1 call"
        if self.difference is None:
            return f", {calls}"
        return f", {self.differing} of {calls}: {self.difference.words}"

    def __str__(self) -> str:
        return f"{self.told}{self.words}"

    def record(self) -> dict[str, Any]:
        """The claim as JSON values."""
        words = self.reason if self.difference is None else self.difference.words  # not the counts
        plain = {
            name: getattr(self, name)
            for name in ("name", "dtype", "is_claimed", "told", "calls", "differing")
        }
        return plain | {"words": words, "case_id": "" if self.difference is None else self.difference.case.id}


def options_of(repeats: int, level: str) -> dict[str, Any]:
    """The options of `attnbench check` with which the claims are measured in the same way."""
    more: dict[str, Any] = {} if repeats == REPEATS else {"repeats": repeats}
    return more | ({} if level == "standard" else {"level": level})


def lines_of(claims: Iterable[Claim]) -> list[str]:
    """What is told: a line for the claims without a difference, one per claim that differs, one for those not asked."""
    claims = list(claims)
    every = {claim.dtype for claim in claims}
    lines: dict[tuple[str, ...], list[str]] = {}
    for told, name in product((SAME, DIFFERS, NOT_ASKED), dict.fromkeys(claim.name for claim in claims)):
        alike = [claim for claim in claims if (claim.told, claim.name) == (told, name)]
        if not alike:
            continue
        dtypes = [claim.dtype for claim in alike]
        title = name + (" (claimed)" if alike[0].is_claimed else "")
        title += "" if set(dtypes) == every else f" in {', '.join(dtypes)}"
        # Where dtypes differ in different ways, the first one speaks for all.
        words = f"{title}{alike[0].words}"
        lines.setdefault((told, name) if told == DIFFERS else (told,), []).append(words)
    return [f"to the bit, {told[0]}: {'; '.join(words)}" for told, words in lines.items()]


def measure(name: str, subject: Subject, repeats: int = REPEATS, level: str = "standard") -> Claim:
    """Measure one claim of CLAIMS in the subject's dtype; what the backend raises passes through."""
    calls, differing, first = 0, 0, None
    on_gpu = subject.device.startswith("cuda")
    few, many = (FEW_ON_GPU, MANY_ON_GPU) if on_gpu else (FEW, MANY)
    can = subject.backend.capabilities
    is_repeated = name.startswith("bitwise_repeatable")  # often, so a small case
    scope = many if level == "exhaustive" and can.timed and not is_repeated else few
    repeats = REPEATS_INTERPRETED if repeats == REPEATS and not can.timed else repeats
    for case, what, got, wanted in COMPARISONS[name](subject, scope, repeats):
        calls += 1
        difference = _difference(case, what, got, wanted)
        differing += difference is not None
        first = first or difference
    return Claim(
        name=name,
        dtype=subject.dtype,
        is_claimed=name in can.claims,
        calls=calls,
        differing=differing,
        difference=first,
        reason="" if calls else f"takes {WITHOUT[name]}",
    )


def _difference(case: Case, what: str, got: Tensors, wanted: Tensors) -> Difference | None:
    for name, want in wanted.items():
        x = got[name]
        at = first_difference(x, want)
        if at is not None:
            count = int(((x != want) & ~(x.isnan() & want.isnan())).sum())
            apart = (x.double() - want.double()).abs().nan_to_num(nan=math.inf).max()
            words = f"{what}: {name} in {count} of {x.numel()} elements, by up to {float(apart):.2g}"
            return Difference(case=case, tensor=name, worst=at, words=words)
    return None


def varying(subject: Subject, case: Case, repeats: int = REPEATS) -> set[str]:
    """The tensors whose bits differ from call to call on the same inputs."""
    pairs = [(got, wanted) for _, _, got, wanted in repeated(subject, repeats, [case])]
    return {name for got, wanted in pairs for name in wanted if first_difference(got[name], wanted[name])}
