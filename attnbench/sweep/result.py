"""What came out of one case on one backend? One flat record; raw samples first, derived figures never."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cache
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

SCHEMA = 1
STATUSES = ("ok", "wrong", "refused", "unavailable", "oom", "timeout", "crashed", "error")
NUMBERS = frozenset((int, float))
BROKEN = ("crashed", "error", "timeout", "oom")  # no answer, where one was due


@dataclass(frozen=True, kw_only=True)
class Result:
    """One (case, backend): JSON values only.

    case            the case as `Case.to_json` gives it; `case_id` its id
    backend         the name as given; `backend_version` of the library; `kernel` what really ran
    status          one of STATUSES; `reason` says why where it is not ok
    errors          per tensor (out, lse, dq, dk, dv, dbias, ...): {"over_budget": .., "worst": [index], ...};
                    `error_over_budget` is the largest over_budget, null where nothing was judged
    samples_ms      per direction ("fwd", "bwd"): list of rounds, each a list of milliseconds a call; empty
                    where nothing was timed; `calls_per_sample` says how many calls each sample averages
    rounds          per round what it was measured under: seconds since the case was begun, place in the
                    round's order, context switches forced on the worker, which `process` it was in where the case
                    had several; on a GPU under "gpu" by direction its
                    clocks, power, temperature, throttle reasons, `throttled` (why it still was) and `retaken`;
                    `clock` names what timed the calls
    other_clocks_ms on a GPU, by the name of another clock (a warm L2, a CUDA graph) and by direction
    memory_bytes    "fwd_peak", "saved", "bwd_peak": bytes above the inputs; missing where not measured
    prepare_ms      milliseconds by step of preparation (mask, layout, compile, first_call)
    notes           remarks for the reader: flags of samples, why nothing was timed
    environment     the key of the fingerprint in environment.json
    """

    case: dict[str, Any]
    case_id: str
    backend: str
    status: str
    reason: str = ""
    suite: str = ""
    group: str = ""
    backend_version: str = ""
    kernel: str = ""
    contract: str = ""
    seed: int = 0
    distribution: str = "randn"
    error_over_budget: float | None = None
    errors: dict[str, dict[str, Any]] = field(default_factory=dict)
    samples_ms: dict[str, list[list[float]]] = field(default_factory=dict)
    calls_per_sample: dict[str, int] = field(default_factory=dict)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    clock: str = ""
    other_clocks_ms: dict[str, dict[str, float]] = field(default_factory=dict)
    memory_bytes: dict[str, int] = field(default_factory=dict)
    least_peak_bytes: int | None = None
    prepare_ms: dict[str, float] = field(default_factory=dict)
    flops: dict[str, int] = field(default_factory=dict)
    least_bytes: dict[str, int] = field(default_factory=dict)
    pairs: int | None = None
    notes: list[str] = field(default_factory=list)
    device: str = ""
    machine: str = ""
    environment: str = ""
    commit: str = ""
    started_at: str = ""
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"no status {self.status!r}; take one of {', '.join(STATUSES)}")
        if self.status != "ok" and any(self.samples_ms.values()):
            raise ValueError(f"a result that is {self.status} carries no samples")

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What makes a result the answer to one question: resumed runs skip keys that are there."""
        return (self.case_id, self.backend, self.seed, self.distribution)

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Result:
        """Read a record; fields of later versions are left aside, missing ones take their defaults.

        ValueError or TypeError where it cannot have been a result: what reads results counts on the fields' types.
        """
        types = _types()
        known = {name: value for name, value in record.items() if name in types}
        for name, value in known.items():
            if not _is(types[name], value):
                raise ValueError(f"{name} is {str(value)[:40]!r}, no {cls.__annotations__[name]}")
        return cls(**known)


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Result)


def _is(kind: Any, value: Any) -> bool:
    """Whether a JSON value is of a field's type; a whole number is a number too."""
    within = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_is(one, value) for one in within)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is(within[1], one) for one in value.values())
    if get_origin(kind) is list:
        if within[0] is float:  # samples, by the million
            return isinstance(value, list) and NUMBERS.issuperset(map(type, value))
        return isinstance(value, list) and all(_is(within[0], one) for one in value)
    return kind is Any or type(value) in (NUMBERS if kind is float else (kind,))
