"""One outcome of a check, and one failure: the values that a report is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from attnbench.judge.verdict import LARGEST
from attnbench.problem import Case

WRONG, OK, REFUSED, KNOWN = "wrong", "ok", "refused", "known"
LIMIT = "limit"  # raised where a plain function should refuse: a suspected limit
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

    def to_json(self) -> dict[str, Any]:
        """The failure as JSON values, the case also as its id."""
        record = vars(self) | {
            "case": self.case.to_json(),
            "case_id": self.case.id,
            "worst": list(self.worst),
        }
        small = None if self.smallest is None else self.smallest.to_json()
        return record | {"causes": list(self.causes), "tensors": list(self.tensors), "smallest": small}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Failure:
        """The failure of such a record."""
        values = {name: value for name, value in record.items() if name != "case_id"}
        values |= {name: tuple(record[name]) for name in ("worst", "causes", "tensors")}
        small = None if record["smallest"] is None else Case.from_json(record["smallest"])
        return cls(**(values | {"case": Case.from_json(record["case"]), "smallest": small}))

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

    def to_json(self) -> dict[str, Any]:
        """The outcome as JSON values, with its whole case."""
        case = None if self.case is None else self.case.to_json()
        return vars(self) | {"case": case, "tensors": list(self.tensors)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> CheckOutcome:
        """The outcome of such a record."""
        case = None if record["case"] is None else Case.from_json(record["case"])
        return cls(**(record | {"case": case, "tensors": tuple(record["tensors"])}))

    def record(self) -> dict[str, Any]:
        """The outcome as JSON values, the case as its id."""
        return {name: getattr(self, name) for name in OUTCOME}


OUTCOME = ("check", "case_id", "dtype", "distribution", "status", "reason", "error_over_budget")
