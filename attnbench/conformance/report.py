"""What did a check of a backend find? Failures with case, place and cause; what was refused; a table of it all."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from attnbench.judge.verdict import LARGEST
from attnbench.problem import Case

if TYPE_CHECKING:
    import pandas as pd

WRONG, OK, REFUSED, KNOWN = "wrong", "ok", "refused", "known"
ORACLE, PROTOCOL = "oracle", "protocol"  # checks; the others are properties, by their names


@dataclass(frozen=True, kw_only=True)
class Failure:
    """One thing that is wrong: which check, on which case, where, by how much, why perhaps, and how to see it again.

    `worst` is the index of the worst element of `tensor`; `z` its error over its noise (None for checks without a
    tolerance); `tensors` are all that are wrong, none where nothing came back to be looked at;
    `causes` are guesses, the likeliest first; `command` reproduces it on `smallest`, the smallest case found.
    """

    check: str
    case: Case
    distribution: str
    seed: int
    tensor: str = ""
    worst: tuple[int, ...] = ()
    z: float | None = None
    error_over_budget: float = LARGEST
    reason: str
    causes: tuple[str, ...] = ()
    smallest: Case | None = None
    command: str = ""
    tensors: tuple[str, ...] = ()

    @property
    def case_id(self) -> str:
        return self.case.id

    @property
    def cause(self) -> str:
        """The likeliest cause in one line."""
        return self.causes[0] if self.causes else "no known pattern"

    def __str__(self) -> str:
        lines = [f"{self.check}: {self.reason}", f"  case   {self.case.id}"]
        lines[1] += "" if self.distribution == "randn" else f" on {self.distribution}"
        if self.causes:
            lines.append("  cause  " + ", or ".join(self.causes[:2]))
        if self.smallest is not None and self.smallest != self.case:
            lines.append(f"  small  {self.smallest.id}")
        if self.command:
            lines.append(f"  again  {self.command}")
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class CheckOutcome:
    """One check on one case (None: on cases of its own): status ok, wrong, refused or known, its reason, and the
    tensors that are wrong.
    """

    check: str
    case: Case | None
    dtype: str
    distribution: str
    status: str
    reason: str = ""
    error_over_budget: float | None = None
    tensors: tuple[str, ...] = ()

    @property
    def case_id(self) -> str:
        return "" if self.case is None else self.case.id

    def record(self) -> dict[str, Any]:
        """The outcome as JSON values, the case as its id."""
        return {name: getattr(self, name) for name in OUTCOME}


OUTCOME = ("check", "case_id", "dtype", "distribution", "status", "reason", "error_over_budget")


@dataclass
class Report:
    """All that a check of one backend found. `ok` needs something that passed and nothing that failed.

    `known` and `gone`: the declared defects of its library that were seen, and those that were not where they
    should have been, by their keys with reason, link and versions. One that is gone is not `ok`: its declaration
    has to go.
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

    @property
    def ok(self) -> bool:
        return not self.failures and not self.gone and any(o.status == OK for o in self.outcomes)

    @property
    def refused(self) -> list[CheckOutcome]:
        return [o for o in self.outcomes if o.status == REFUSED]

    def frame(self) -> pd.DataFrame:
        """One row an outcome: check, case_id, dtype, distribution, status, reason, error_over_budget."""
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
            for name in ("backend", "level", "device", "seed", "contract", "ok", "known", "gone")
        }
        return head | {"failures": failures, "outcomes": [o.record() for o in self.outcomes]}

    def __str__(self) -> str:
        count = {s: sum(o.status == s for o in self.outcomes) for s in (OK, WRONG, REFUSED, KNOWN)}
        word = "right" if self.ok else "WRONG" if self.failures or self.gone else "not shown to be right"
        word += f", with {_many(len(self.known), 'known defect')}" if self.known else ""
        head = f"{self.backend}: {word} ({self.level}, {self.device}, contract {self.contract}, seed {self.seed})"
        told = f"{count[OK]} checks passed, {count[WRONG]} failed, {count[REFUSED]} refused"
        told += f", {count[KNOWN]} failed as known" if count[KNOWN] else ""
        lines = [head, told]
        if not count[OK] and not self.failures:
            reasons = sorted({o.reason for o in self.refused})
            lines.append("nothing was computed" + (f": {'; '.join(reasons[:3])}" if reasons else ""))
        lines += [f"known defect, {key}: {words}" for key, words in self.known.items()]
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


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@dataclass(frozen=True)
class Again:
    """The commands that run a check again, to paste into a shell."""

    backend: str
    check: str
    seed: int
    contract: str | None = None

    def on(self, case: Case, distribution: str) -> str:
        """On one case: what is not said there has its default."""
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

    def on_its_own_cases(self, dtype: str, masks: tuple[str, ...] | None, backward: bool) -> str:
        """On the cases that a property chooses in a dtype."""
        words = ["--dtype", dtype]
        for mask in masks or ():
            words += ["--mask", mask]
        return self._command(["--only", self.check], words + ([] if backward else ["--direction", "fwd"]))

    def _command(self, only: list[str], words: list[str]) -> str:
        contract = ["--contract", self.contract] if self.contract else []
        seed = ["--seed", str(self.seed)]
        return shlex.join(["attnbench", "check", self.backend, *only, *words, *contract, *seed])
