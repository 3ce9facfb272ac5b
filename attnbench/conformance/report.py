"""The findings of a check: its verdict, failures with case, place and cause, what was refused, and a table of all."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from attnbench.conformance.claims import Claim, lines_of
from attnbench.conformance.coverage import coverage, shortfall
from attnbench.conformance.limits import SuspectedLimit
from attnbench.conformance.outcome import (
    KNOWN,
    LIMIT,
    OK,
    ORACLE,
    OUTCOME,
    REFUSED,
    WRONG,
    CheckOutcome,
    Failure,
)
from attnbench.problem import Case

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
    the library that is later than every one that was tried.
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

    @property
    def verdict(self) -> str:
        """`right`, `wrong` or `too little checked`: nothing passed, or an unrestricted check stands on too little."""
        if self.failures or self.gone:
            return VERDICT_WRONG
        if self.shortfall or not any(o.status == OK for o in self.outcomes):
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

    def frame(self) -> pd.DataFrame:
        """One row per outcome: check, case_id, dtype, distribution, status, reason, error_over_budget."""
        import pandas as pd

        records = [o.record() for o in self.outcomes]
        return pd.DataFrame(records, columns=list(OUTCOME)).assign(backend=self.backend)

    def to_json(self) -> dict[str, Any]:
        """The report as JSON values."""
        failures = []
        for f in self.failures:
            record = {name: value for name, value in vars(f).items() if name not in ("case", "smallest")}
            record |= {"case": f.case.to_json(), "case_id": f.case.id, "worst": list(f.worst)}
            record |= {
                "causes": list(f.causes),
                "smallest": None if f.smallest is None else f.smallest.to_json(),
            }
            failures.append(record)
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
            )
        }
        head["limits"] = [vars(limit) for limit in self.limits]
        head["claims"] = [claim.record() for claim in self.claims]
        return head | {"failures": failures, "outcomes": [o.record() for o in self.outcomes]}

    def _repr_html_(self) -> str:
        """The text for a notebook, its first line coloured by the verdict."""
        colour = {RIGHT: "#2C8C6B", VERDICT_WRONG: "#B2182B"}.get(self.verdict, "#8A6D00")
        head, _, rest = escape(str(self)).partition("\n")
        return f'<pre style="white-space:pre-wrap"><b style="color:{colour}">{head}</b>\n{rest}</pre>'

    def __str__(self) -> str:
        count = {s: sum(o.status == s for o in self.outcomes) for s in (OK, WRONG, REFUSED, KNOWN, LIMIT)}
        verdict = self.verdict
        word = verdict.upper() if verdict == VERDICT_WRONG else verdict
        word += (
            f" but for {_many(len(self.limits), 'suspected limit')}"
            if self.limits and verdict == RIGHT
            else ""
        )
        word += f" under the {self.contract} contract" if self.not_flash and verdict == RIGHT else ""
        defects = len(self.known) + len(self.undeclared)
        word += f", with {_many(defects, 'known defect')}" if defects else ""
        word += f"; not under flash: {self.not_flash}" if self.not_flash else ""
        head = f"{self.backend}: {word} ({self.level}, {self.device}, contract {self.contract}, seed {self.seed})"
        counts = f"{count[OK]} checks passed, {count[WRONG]} failed, {count[REFUSED]} refused"
        counts += f", {count[KNOWN]} failed as known" if count[KNOWN] else ""
        counts += f", {count[LIMIT]} raised at suspected limits" if count[LIMIT] else ""
        lines = [head, counts]
        if not count[OK] and not self.failures:
            reasons = sorted({o.reason for o in self.refused})
            lines.append("nothing was computed" + (f": {'; '.join(reasons[:3])}" if reasons else ""))
        lines += [f"too little: {words}" for words in self.shortfall] if verdict == TOO_LITTLE else []
        lines += [
            f"no backward in {', '.join(d for d, w in self.without_backward.items() if w == words)} ({words}): "
            "the forward is checked in full"
            for words in dict.fromkeys(self.without_backward.values())
        ]
        lines += [f"suspected limit, {limit}" for limit in self.limits]
        if verdict != VERDICT_WRONG and not self.is_restricted:
            lines += [f"  {entry}" for entry in coverage(self.outcomes) if entry.taken or entry.refused]
        lines += lines_of(self.claims) if verdict != VERDICT_WRONG else []
        lines += [f"known defect, {key}: {words}" for key, words in self.known.items()]
        lines += [
            f"the known defect, not yet declared for this version, {key}: {words}"
            for key, words in self.undeclared.items()
        ]
        lines += [
            f"known defect gone, {key}: it passes now; take it out of known_defects, or narrow its versions: {words}"
            for key, words in self.gone.items()
        ]
        alike: dict[str, list[Failure]] = {}
        for failure in self.failures:
            alike.setdefault(failure.reason, []).append(failure)
        for first, *others in list(alike.values())[:MOST_SHOWN]:
            lines += ["", str(first)]
            lines += [f"  also   in {_many(len(others), 'other check')}"] if others else []
        left_out = sum(len(same) for same in list(alike.values())[MOST_SHOWN:])
        if left_out:
            lines += ["", f"and {left_out} more; .failures and .frame() have them all"]
        return "\n".join(lines)


MOST_SHOWN = 8  # reasons
RIGHT, VERDICT_WRONG, TOO_LITTLE = "right", "wrong", "too little checked"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@dataclass(frozen=True)
class Again:
    """The commands that run a check again, to paste into a shell."""

    backend: str
    check: str
    seed: int
    contract: str | None = None
    declare: str = ""

    def on(self, case: Case, distribution: str) -> str:
        """On one case, without the fields that have their defaults."""
        plain = {name: value for name, value in case.to_json().items() if value is not None and value != []}
        defaults = {"batch": 1, "layout": "bhsd", "direction": "fwd", "mask": "full"}
        plain = {name: value for name, value in plain.items() if defaults.get(name) != value}
        if plain["kv_heads"] == plain["q_heads"]:
            del plain["kv_heads"]
        if plain["v_dim"] == plain["head_dim"]:
            del plain["v_dim"]
        words = ["--case", json.dumps(plain)]
        words += ["--distribution", distribution] if distribution != "randn" else []
        return self._command([] if self.check == ORACLE else ["--only", self.check], words)

    def on_its_own_cases(
        self,
        dtype: str,
        masks: tuple[str, ...] | None,
        backward: bool,
        where: str = "",
        more: Sequence[str] = (),
    ) -> str:
        """On the cases that a property chooses in a dtype."""
        words = ["--dtype", dtype]
        for mask in masks or ():
            words += ["--mask", mask]
        words += ["--where", where] if where else []
        words += more
        return self._command(["--only", self.check], words + ([] if backward else ["--direction", "fwd"]))

    def _command(self, only: list[str], words: list[str]) -> str:
        contract = ["--contract", self.contract] if self.contract else []
        declare = ["--declare", self.declare] if self.declare else []
        seed = ["--seed", str(self.seed)]
        return shlex.join(["attnbench", "check", self.backend, *only, *words, *declare, *contract, *seed])
