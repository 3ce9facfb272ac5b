"""The outcome of one case on one backend as one flat record: raw samples, no derived figures."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from functools import cache
from types import UnionType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from attnbench.statuses import STATUSES

if TYPE_CHECKING:
    from attnbench.problem import Case

SCHEMA = 1  # of the stored record; `from_json` is the one place that reads other schemas
NUMBERS = frozenset((int, float))


@dataclass(frozen=True, kw_only=True)
class Result:
    """One (case, backend): JSON values only.

    case            the case as `Case.to_json` gives it; `case_id` its id
    backend         the name or path that was run; `backend_version` of its library; `kernel` what really ran
    status          one of STATUSES; `reason` says why it is not ok
    errors          per tensor (out, lse, dq, dk, dv, dbias, ...): {"over_budget": .., "worst": [index], ...};
                    `error_over_budget` is the largest over_budget, null if nothing was judged
    samples_ms      per direction ("fwd", "bwd"): list of rounds, each a list of milliseconds per call; empty
                    if nothing was timed; `calls_per_sample` says how many calls each sample averages
    rounds          the conditions of each round: seconds since the case began, position in the round's order,
                    context switches forced on the worker, `process` if the case ran in several; on a GPU under
                    "gpu" by direction its clocks, power, temperature, throttle reasons, `throttled` (why the kept
                    block still is) and `retaken`
    clock           what timed the calls
    host_ms         on a GPU, by direction: the host's time to enqueue one call, which is in no sample
    other_clocks_ms on a GPU, by the name of another clock (a warm L2, a CUDA graph) and by direction
    memory_bytes    "fwd_peak", "saved", "bwd_peak": bytes above the inputs; missing if not measured
    prepare_ms      milliseconds by step of preparation (mask, layout, compile, first_call)
    notes           remarks for the reader: flags on samples, why nothing was timed
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
    host_ms: dict[str, float] = field(default_factory=dict)
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
            raise ValueError(f"a result with status {self.status} carries no samples")

    @property
    def key(self) -> tuple[str, str, int, str]:
        """What identifies a result: a resumed run skips the keys that are stored."""
        return (self.case_id, self.backend, self.seed, self.distribution)

    @classmethod
    def blank(cls, case: Case, **values: Any) -> Result:
        """The record of a case before a backend runs it: what follows from the case, and `values`."""
        directions = ("fwd", "bwd") if case.needs_backward else ("fwd",)
        started_at = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(
            case=case.to_json(),
            case_id=case.id,
            least_peak_bytes=case.least_peak_bytes,
            flops={d: case.flops(d) for d in directions},  # type: ignore[arg-type]
            least_bytes={d: case.least_bytes(d) for d in directions},  # type: ignore[arg-type]
            pairs=case.pairs,
            **({"backend": "", "status": "error", "started_at": started_at} | values),
        )

    def to_json(self) -> dict[str, Any]:
        """The record as JSON values."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Result:
        """Read a stored record: unknown fields are ignored, missing ones take their defaults.

        Raises ValueError or TypeError for a later schema and for a field of another type.
        """
        types = _types()
        values = {name: value for name, value in record.items() if name in types}
        for name, value in values.items():
            if not _is_of_type(value, types[name]):
                raise ValueError(f"{name} is {str(value)[:40]!r}, no {cls.__annotations__[name]}")
        if values.get("schema", SCHEMA) > SCHEMA:
            raise ValueError(f"schema {record['schema']}, and this attnbench reads up to {SCHEMA}: update it")
        return cls(**values)


@cache
def _types() -> dict[str, Any]:
    return get_type_hints(Result)


def _is_of_type(value: Any, kind: Any) -> bool:
    """Whether a JSON value is of a field's type; an int is a float too."""
    within = get_args(kind)
    if get_origin(kind) is UnionType:
        return any(_is_of_type(value, one) for one in within)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_of_type(one, within[1]) for one in value.values())
    if get_origin(kind) is list:
        if within[0] is float:  # samples, by the million
            return isinstance(value, list) and NUMBERS.issuperset(map(type, value))
        return isinstance(value, list) and all(_is_of_type(one, within[0]) for one in value)
    return kind is Any or type(value) in (NUMBERS if kind is float else (kind,))
