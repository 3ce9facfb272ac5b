"""The findings of a check: its verdict, failures with case, place and cause, what was refused, and a table of all."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from attnbench.conformance.blocks import CauseBlock, blocks
from attnbench.conformance.claims import Claim, lines_of
from attnbench.conformance.coverage import coverage, shortfall
from attnbench.conformance.limits import SuspectedLimit
from attnbench.conformance.outcome import (
    KNOWN,
    LIMIT,
    OK,
    OUTCOME,
    REFUSED,
    WRONG,
    CheckOutcome,
    Failure,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass
class Report:
    """The findings of a check of one backend. `verdict` is right, wrong or too little checked; `ok` is true for right.

    `limits`: what a plain function raises for instead of refusing it. `is_restricted`: the request kept the check to
    some cases, masks or checks, so that being short is no shortfall. `without_backward`: dtypes in which the backward
    is refused and the forward checked in full, with the words. `not_flash`: what a plain function that declares no
    contract does beyond flash, if it is judged by the `contract` that allows it. `known` and `gone`: the declared
    defects of its library that were seen, and those that should have been seen and were not, by their keys with reason,
    link and versions. One that is gone is not `ok`: remove its declaration. `undeclared`: those seen in a version of
    the library that is later than every one that was tried. `facts`: what the backend does where it may do either, by
    a name.
    `stopped`: what ended the check before its end, such as a time limit; it is never right then. `cut_short`: dtypes
    whose battery ended early, since enough of it failed.
    """

    backend: str
    level: str
    device: str
    seed: int
    contract: str
    outcomes: list[CheckOutcome] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    known: dict[str, str] = field(default_factory=dict)
    gone: dict[str, str] = field(default_factory=dict)
    undeclared: dict[str, str] = field(default_factory=dict)
    limits: list[SuspectedLimit] = field(default_factory=list)
    without_backward: dict[str, str] = field(default_factory=dict)
    is_restricted: bool = False
    claims: list[Claim] = field(default_factory=list)
    not_flash: str = ""
    stopped: str = ""
    cut_short: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """`right`, `wrong` or `too little checked`: nothing passed, it was stopped, or an unrestricted one is thin."""
        if self.failures or self.gone:
            return VERDICT_WRONG
        if self.stopped or self.shortfall or not any(o.status == OK for o in self.outcomes):
            return TOO_LITTLE
        return RIGHT

    @property
    def ok(self) -> bool:
        return self.verdict == RIGHT

    @property
    def shortfall(self) -> list[str]:
        """What an unrestricted check lacks to say `right`, in sentences; see `coverage`."""
        return [] if self.is_restricted else shortfall(self.outcomes, self.level)

    @property
    def refused(self) -> list[CheckOutcome]:
        return [o for o in self.outcomes if o.status == REFUSED]

    def causes(self) -> list[CauseBlock]:
        """The failures by cause, each told once."""
        return blocks(self.failures)

    def frame(self) -> pd.DataFrame:
        """One row per outcome: check, case_id, dtype, distribution, status, reason, error_over_budget."""
        import pandas as pd

        records = [o.record() for o in self.outcomes]
        return pd.DataFrame(records, columns=list(OUTCOME)).assign(backend=self.backend)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        head = {
            name: getattr(self, name)
            for name in (
                "backend",
                "level",
                "device",
                "seed",
                "contract",
                "not_flash",
                "verdict",
                "ok",
                "known",
                "gone",
                "undeclared",
                "shortfall",
                "without_backward",
                "stopped",
                "cut_short",
            )
        }
        head["facts"] = self.facts
        head["limits"] = [vars(limit) for limit in self.limits]
        head["claims"] = [claim.record() for claim in self.claims]
        head["blocks"] = [
            {"causes": list(block.causes), "words": block.words, "count": len(block.failures)}
            for block in self.causes()
        ]
        failures = [f.to_json() for f in self.failures]
        return head | {"failures": failures, "outcomes": [o.record() for o in self.outcomes]}

    def _repr_html_(self) -> str:
        """The text for a notebook, its first line coloured by the verdict."""
        colour = {RIGHT: "#2C8C6B", VERDICT_WRONG: "#B2182B"}.get(self.verdict, "#8A6D00")
        head, _, rest = escape(str(self)).partition("\n")
        return f'<pre style="white-space:pre-wrap"><b style="color:{colour}">{head}</b>\n{rest}</pre>'

    def __str__(self) -> str:
        return self.text()

    def text(self, verbose: bool = False) -> str:
        """The report for a reader: the verdict, what it stands on, and each cause once; `verbose`: all there is."""
        lines = [self._head(), self._counts()]
        lines += [f"stopped by {self.stopped}: this is what it found so far"] if self.stopped else []
        verdict = self.verdict
        if not any(o.status == OK for o in self.outcomes) and not self.failures:
            reasons = sorted({o.reason for o in self.refused})
            lines.append("nothing was computed" + (f": {'; '.join(reasons[:3])}" if reasons else ""))
        lines += [f"too little: {words}" for words in self.shortfall] if verdict == TOO_LITTLE else []
        lines += [
            f"no backward in {', '.join(d for d, w in self.without_backward.items() if w == words)} ({words}): "
            "the forward is checked in full"
            for words in dict.fromkeys(self.without_backward.values())
        ]
        limits = self.limits if verbose else self.limits[:MOST_LIMITS]
        lines += [f"suspected limit, {limit}" for limit in limits]
        lines += _more(len(self.limits) - len(limits), "suspected limit")
        lines += [f"{name}: {words}" for name, words in self.facts.items()]
        lines += lines_of(self.claims) if verbose or verdict != VERDICT_WRONG else []
        lines += [f"known defect, {key}: {words}" for key, words in self.known.items()]
        lines += [
            f"the known defect, not yet declared for this version, {key}: {words}"
            for key, words in self.undeclared.items()
        ]
        lines += [
            f"known defect gone, {key}: it passes now; take it out of known_defects, or narrow its versions: {words}"
            for key, words in self.gone.items()
        ]
        if verbose or not (verdict == VERDICT_WRONG or self.is_restricted):
            lines += self._coverage(verbose or verdict == TOO_LITTLE)
        return "\n".join([*lines, *self._cause_lines(verbose)])

    def _head(self) -> str:
        verdict = self.verdict
        word = verdict.upper() if verdict == VERDICT_WRONG else verdict
        if self.limits and verdict == RIGHT:
            word += f" but for {_many(len(self.limits), 'suspected limit')}"
        word += f" under the {self.contract} contract" if self.not_flash and verdict == RIGHT else ""
        defects = len(self.known) + len(self.undeclared)
        word += f", with {_many(defects, 'known defect')}" if defects else ""
        word += f"; not under flash: {self.not_flash}" if self.not_flash else ""
        return f"{self.backend}: {word} ({self.level}, {self.device}, contract {self.contract}, seed {self.seed})"

    def _counts(self) -> str:
        count = Counter(o.status for o in self.outcomes)
        counts = f"{count[OK]} checks passed, {count[WRONG]} failed, {count[REFUSED]} refused"
        counts += f", {count[KNOWN]} failed as known" if count[KNOWN] else ""
        counts += f", {count[LIMIT]} raised at suspected limits" if count[LIMIT] else ""
        many = f"; the battery of {', '.join(self.cut_short)} ended early: enough failed"
        return counts + (many if self.cut_short else "")

    def _coverage(self, verbose: bool) -> list[str]:
        """A line per factor; else one line of how many values each took, and those of which some were refused."""
        entries = [entry for entry in coverage(self.outcomes) if entry.taken or entry.refused]
        if verbose or not entries:
            return [f"  {entry}" for entry in entries]
        counted = ", ".join(f"{entry.factor} {len(entry.taken)}" for entry in entries)
        return [f"values tried: {counted}", *(f"  {entry.refusal}" for entry in entries if entry.refused)]

    def _cause_lines(self, verbose: bool) -> list[str]:
        """A block per cause; if they are many, the first one whole, and a line of the others."""
        found = self.causes()
        if verbose:
            lines = []
            for block in found:
                lines += ["", *block.lines()]
                lines += [
                    f"  of     {f.case.id} on {f.distribution}: {f.check}: {f.reason}" for f in block.failures
                ]
            return lines
        whole = len(found) if len(found) <= MOST_BLOCKS else 1
        lines = [line for block in found[:whole] for line in ("", *block.lines())]
        others = found[whole:]
        lines += [""] if others else []
        lines += [f"also {block.words}; in {block.counted()}" for block in others[:MOST_ALSO]]
        return lines + _more(len(others) - MOST_ALSO, "cause")


# Of a report that is not verbose: whole causes, causes in one line, limits.
MOST_BLOCKS, MOST_ALSO, MOST_LIMITS = 2, 4, 3
RIGHT, VERDICT_WRONG, TOO_LITTLE = "right", "wrong", "too little checked"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _more(count: int, what: str) -> list[str]:
    return (
        [f"and {_many(count, f'more {what}')}; -v shows all, as .text(verbose=True) does"]
        if count > 0
        else []
    )
