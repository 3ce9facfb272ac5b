"""The verdict on two result sets, per case: correctness, coverage and memory are hard, speed has a margin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np

from attnbench.backend.interface import CONTRACTS
from attnbench.errors import UnknownBackend, did_you_mean
from attnbench.gate.comparison import PASSES
from attnbench.gate.pairing import ResultSet, differences, pair, require_alike
from attnbench.gate.statistics import Ratio, ratio_of_medians
from attnbench.statuses import BROKEN
from attnbench.sweep.result import Result

Failing = Literal["wrong", "missing", "broken", "less accurate", "bigger", "worse compiled", "slower"]
Kind = Literal[Failing, "suspect", "inconclusive", "accepted", "new", "faster", "same"]  # the worst first
FAILING: tuple[Kind, ...] = get_args(Failing)
KINDS: tuple[Kind, ...] = get_args(Kind)
# Two separate runs of the same code differ by more than 5 % in every fifth case on a shared machine.
MARGIN = 0.10
APART_MARGINS = 3.0  # times the margin, if there are too few samples for an interval
FEWEST_PROCESSES = 4  # fresh ones per side for separate runs to fail on speed
MORE_ROUNDS = "run both with more --rounds"
ADVICE = "separate runs only advise unless each has four processes that agree (attnbench run --processes 4)"
MEMORY_SHARE, MEMORY_SLACK_BYTES = 0.01, 2 << 20


@dataclass(frozen=True)
class Finding:
    """One finding on one case: its `kind`, a sentence, and `which` pass if it concerns one.

    `rounds`: the paired rounds behind a verdict on speed; 0 if rounds were not paired.
    """

    kind: Kind
    case: str
    backend: str
    message: str
    which: str = ""
    ratio: Ratio | None = None
    rounds: int = 0

    def to_json(self) -> dict[str, Any]:
        """The finding as JSON values."""
        ratio = None if self.ratio is None else {**vars(self.ratio)}
        return {**vars(self), "ratio": ratio, "fails": self.kind in FAILING}


@dataclass(frozen=True)
class Gate:
    """The findings of the gate, the worst first.

    `margin` is the slow-down to find; `unlike` names what differs, if the caller allowed it to; `notes` say what was
    not gated, and why.
    """

    findings: tuple[Finding, ...]
    margin: float
    unlike: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.kind in FAILING)

    @property
    def inconclusive(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.kind == "inconclusive")

    def count(self, kind: Kind) -> int:
        return sum(finding.kind == kind for finding in self.findings)

    def exit_code(self, *, strict: bool = False) -> int:
        """0 fine, 1 worse; an inconclusive case is a warning, and a failure when strict."""
        return 1 if self.failures or (strict and self.inconclusive) else 0

    def to_json(self, *, strict: bool = False) -> dict[str, Any]:
        """The verdict as JSON values."""
        return {
            "exit_code": self.exit_code(strict=strict),
            "margin": self.margin,
            "unlike": list(self.unlike),
            "notes": list(self.notes),
            "counts": {kind: self.count(kind) for kind in KINDS},
            "findings": [finding.to_json() for finding in self.findings],
        }


def gate(
    base: ResultSet,
    head: ResultSet,
    *,
    margin: float = MARGIN,
    allow_unlike: bool = False,
    backends: Iterable[str] | None = None,
) -> Gate:
    """Gate head on base; NotComparable if they share no case, or their machines differ.

    A wrong result fails whatever base was. A case or backend that base has and head lacks fails, and so does one
    that base answered and head refuses. If the ratio of medians exceeds 1 + margin and its interval excludes 1, speed
    is suspect; it fails if both ran in FEWEST_PROCESSES fresh processes or more and each of head's was slower than
    each of base's. It is inconclusive if the interval reaches the margin, or is unknown and the ratio exceeds it.
    """
    chosen = None if backends is None else list(backends)
    for name in chosen or ():
        names = sorted({result.backend for result in (*base.results, *head.results)})
        if name not in names:
            near = did_you_mean(name, names)
            raise UnknownBackend(f"neither has results of {name!r}{near}; there are {', '.join(names)}")
    base, head = base.of(chosen), head.of(chosen)
    pairs = pair(base, head)
    if not allow_unlike:
        require_alike(base, head, pairs)
    findings: list[Finding] = []
    for gone in pairs.only_base:
        findings.append(
            Finding("missing", gone.case_id, gone.backend, f"is gone; base has it ({gone.status})")
        )
    for new in pairs.only_head:
        kind: Kind = "wrong" if new.status == "wrong" else "new"
        findings.append(Finding(kind, new.case_id, new.backend, f"is new: {_status_text(new)}"))
    for one, two in pairs.both:
        findings += status_finding(one, two) or [
            *contract_finding(one, two),
            *_memory_findings(one, two),
            *_speed_findings(one, two, margin),
        ]
    return gathered(findings, margin, unlike=tuple(differences(base, head, pairs)))


def gathered(
    findings: Iterable[Finding], margin: float, *, unlike: tuple[str, ...] = (), notes: tuple[str, ...] = ()
) -> Gate:
    """The findings as a verdict, the worst kind first and the largest effect first in each."""
    worst_first = sorted(findings, key=lambda f: (KINDS.index(f.kind), -(f.ratio.point if f.ratio else 0.0)))
    return Gate(tuple(worst_first), margin, unlike, notes)


def _status_text(result: Result) -> str:
    return f"{result.status}{f' ({result.reason})' if result.reason else ''}"


def status_finding(base: Result, head: Result) -> list[Finding]:
    """The finding that the statuses alone decide; empty if both are ok and can be compared."""

    def finding(kind: Kind, message: str) -> list[Finding]:
        return [Finding(kind, head.case_id, head.backend, message)]

    if head.status == "wrong":
        return finding("wrong", f"is wrong: {head.reason or 'no reason given'}; base is {base.status}")
    if base.status == "ok" and head.status in BROKEN:
        return finding("broken", f"is {_status_text(head)}; base is ok")
    if base.status == "ok" and head.status != "ok":
        return finding("missing", f"is {_status_text(head)}; base is ok")
    if base.status != "ok" and head.status == "ok":
        return finding("new", f"is ok; base is {base.status}")
    if head.status in BROKEN and head.status == base.status:
        return finding("inconclusive", f"was judged in neither: {_status_text(head)}")
    if head.status != "ok" and head.status == base.status:
        return finding("same", f"is {head.status} in both")
    if head.status in BROKEN:
        return finding("broken", f"is {_status_text(head)}; base is {base.status}")
    return [] if head.status == "ok" else finding("same", f"is {_status_text(head)}; base is {base.status}")


def contract_width(result: Result) -> int:
    """The place of a result's contract among all, the narrowest first; -1 if it is not known."""
    return next((place for place, contract in enumerate(CONTRACTS) if contract == result.contract), -1)


def contract_finding(base: Result, head: Result) -> list[Finding]:
    """A finding if head, right as base is, is so under a wider contract alone."""
    if not -1 < contract_width(base) < contract_width(head):
        return []
    message = f"is right under the {head.contract} contract alone, base under {base.contract}"
    why = next((f": {note}" for note in head.notes if "not under flash" in note), "")
    return [Finding("less accurate", head.case_id, head.backend, message + why)]


def _memory_findings(base: Result, head: Result) -> Iterator[Finding]:
    for name in ("fwd_peak", "saved", "bwd_peak"):
        before, after = base.memory_bytes.get(name), head.memory_bytes.get(name)
        if before is None:
            continue
        if after is None:
            yield Finding("missing", head.case_id, head.backend, f"has no {name} memory; base has", name)
        elif growth := bigger(before, after):
            yield Finding("bigger", head.case_id, head.backend, f"{name} {growth}", name)


def bigger(before: int, after: int) -> str:
    """How memory grew, in words, if by more than the margin; else empty."""
    if after <= before * (1 + MEMORY_SHARE) + MEMORY_SLACK_BYTES:
        return ""
    times = f"{after / before:.2f}x" if before else "from nothing"
    return f"{after / 2**20:.1f} MiB, base {before / 2**20:.1f} MiB ({times})"


def _speed_findings(base: Result, head: Result, margin: float) -> Iterator[Finding]:
    for which in PASSES:
        before, after = base.samples_ms.get(which) or [], head.samples_ms.get(which) or []
        if not any(before):
            continue
        if not any(after):
            yield Finding("missing", head.case_id, head.backend, f"has no {which} time; base has", which)
            continue
        ratio = ratio_of_medians(before, after)
        if ratio is None:
            yield Finding("inconclusive", head.case_id, head.backend, f"{which}: base took no time", which)
            continue
        kind, text = judge_speed(ratio, margin)
        if kind == "slower" and not _apart_by_process(base, head, which):
            kind, text = "suspect", f"{text}; {ADVICE}"
        message = f"{which} {text}: {ratio.head_ms:.4g} ms, base {ratio.base_ms:.4g} ms"
        yield Finding(kind, head.case_id, head.backend, message, which, ratio)


def _apart_by_process(base: Result, head: Result, which: str) -> bool:
    """Whether the median of every process of head exceeds that of every one of base, with enough processes."""
    medians = []
    for result in (base, head):
        by_process: dict[int, list[float]] = {}
        for block, round_ in zip(result.samples_ms[which], result.rounds, strict=False):
            by_process.setdefault(int(round_.get("process", 0)), []).append(min(block))
        medians.append([float(np.median(blocks)) for blocks in by_process.values()])
    return min(len(side) for side in medians) >= FEWEST_PROCESSES and min(medians[1]) > max(medians[0])


def judge_speed(ratio: Ratio, margin: float) -> tuple[Kind, str]:
    """The verdict on one ratio, and its text.

    Too few samples for an interval still show a large effect: every sample of head above every one of base, and
    the ratio above 1 + APART_MARGINS * margin.
    """
    text = f"{ratio.point:.3f}x"
    if ratio.low is None or ratio.high is None:
        if ratio.apart and ratio.point > 1 + APART_MARGINS * margin:
            return "slower", f"{text}, every sample slower"
        if ratio.point > 1 + margin:
            return "inconclusive", f"{text}, too few samples for an interval; {MORE_ROUNDS}"
        return "same", text
    text += f" ({ratio.low:.3f} to {ratio.high:.3f})"
    if ratio.point > 1 + margin:
        return (
            ("slower", text)
            if ratio.low > 1
            else ("inconclusive", f"{text}, the interval includes 1; {MORE_ROUNDS}")
        )
    if ratio.high > 1 + margin:
        return "inconclusive", f"{text}, the interval reaches the margin; {MORE_ROUNDS}"
    return ("faster", text) if ratio.point < 1 / (1 + margin) and ratio.high < 1 else ("same", text)
