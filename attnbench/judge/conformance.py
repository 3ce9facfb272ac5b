"""Is this backend right in everything that it claims? The battery, the properties and the protocol, in one report."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from attnbench.backend.interface import Backend
from attnbench.backend.registry import function_backend, resolve
from attnbench.errors import AttnbenchError
from attnbench.judge.battery import LEVELS, battery
from attnbench.judge.diagnosis import causes_of
from attnbench.judge.known import is_known, settle_known_defects
from attnbench.judge.properties import PROPERTIES
from attnbench.judge.property import Finding
from attnbench.judge.protocol import protocol_faults
from attnbench.judge.report import OK, REFUSED, WRONG, Failure, Outcome, Report, command_for
from attnbench.judge.shrink import smallest_failing
from attnbench.judge.subject import Failed, Refused, Subject
from attnbench.judge.verdict import LARGEST, judge
from attnbench.problem import Case, make_inputs
from attnbench.problem.case import DIRECTIONS, DTYPES

ORACLE, PROTOCOL = "oracle", "protocol"
EXPLAINED = 3  # failures for which a smaller case and a cause are searched: each costs some dozens of runs
DIAGNOSED = 8  # failures for which a cause is guessed; a report shows no more

Given = str | Backend | Callable[..., Any]
Test = TypeVar("Test", bound=Callable[..., Any])


def check(
    backend: Given,
    *,
    level: str = "standard",
    device: str = "auto",
    seed: int = 0,
    masks: Iterable[str] | None = None,
    dtypes: Iterable[str] | None = None,
    directions: Iterable[str] | None = None,
    contract: str | None = None,
    case: Case | dict[str, Any] | None = None,
    distribution: str = "randn",
) -> Report:
    """Check a backend (a name, path/to/file.py:function, a Backend or a plain function) and report what is wrong.

    `masks`, `dtypes` and `directions` keep the check to what the backend is meant for; a NotImplementedError from
    a plain function refuses the case it is given. With `case` only that one is run, on `distribution`. The same
    seed gives the same check. Raises AttnbenchError where the request makes no sense, never for what the backend does.
    """
    plan = _plan(backend, level, device, seed, masks, dtypes, directions, contract)
    report = Report(plan.backend.name, level, plan.device, seed, plan.contract)
    if case is not None:
        one = case if isinstance(case, Case) else Case.from_json(case)
        _Run(plan, report, one.dtype, settles=False).one(ORACLE, one, distribution)
        return report
    for dtype in plan.dtypes:
        run = _Run(plan, report, dtype)
        for name, part in run.parts().items():
            part(name)
    settle_known_defects(plan.backend, report)
    return report


@dataclass(frozen=True)
class _Plan:
    backend: Backend
    given_contract: str | None
    contract: str
    level: str
    device: str
    seed: int
    masks: tuple[str, ...] | None
    dtypes: tuple[str, ...]
    directions: tuple[str, ...]


def _plan(
    given: Given,
    level: str,
    device: str,
    seed: int,
    masks: Iterable[str] | None,
    dtypes: Iterable[str] | None,
    directions: Iterable[str] | None,
    contract: str | None,
) -> _Plan:
    if level not in LEVELS:
        raise AttnbenchError(f"no level {level!r}; take one of {', '.join(LEVELS)}")
    if isinstance(given, str):
        backend = resolve(given, contract=contract)
    elif isinstance(given, Backend):
        backend = given
        backend.name = backend.name or type(backend).__name__
    elif callable(given):
        backend = function_backend(given, contract=contract)
    else:
        raise AttnbenchError(
            f"{given!r} is no backend; give a name, path/to/file.py:function, a Backend or a function"
        )
    where = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    can = backend.capabilities
    wanted_dtypes = _among("dtype", dtypes, tuple(DTYPES))
    wanted_directions = _among("direction", directions, DIRECTIONS)
    able = tuple(d for d in wanted_directions if d == "fwd" or can.backward)
    return _Plan(
        backend,
        contract,
        contract or can.contract,
        level,
        where,
        seed,
        None if masks is None else tuple([masks] if isinstance(masks, str) else sorted(masks)),
        tuple(d for d in wanted_dtypes if d in can.dtypes),
        able,
    )


def _among(what: str, given: Iterable[str] | None, known: Sequence[str]) -> tuple[str, ...]:
    if given is None:
        return tuple(known)
    words = [given] if isinstance(given, str) else list(given)
    for word in words:
        if word not in known:
            raise AttnbenchError(f"no {what} {word!r}; take {', '.join(known)}")
    return tuple(k for k in known if k in words)


class _Run:
    """The checks of one dtype, each of which writes into the report."""

    def __init__(self, plan: _Plan, report: Report, dtype: str, settles: bool = True) -> None:
        self.plan, self.report, self.dtype, self.settles = plan, report, dtype, settles
        backward = "fwd_bwd" in plan.directions
        self.subject = Subject(
            plan.backend, plan.device, dtype, plan.seed, plan.contract, plan.masks, backward
        )

    def parts(self) -> dict[str, Callable[[str], None]]:
        """Every check of this dtype by name, in order; the level says how many."""
        parts: dict[str, Callable[[str], None]] = {ORACLE: self.oracle, PROTOCOL: self.protocol}
        if self.plan.level == "smoke":
            return parts
        return parts | dict.fromkeys(PROPERTIES, self.property)

    def cases(self) -> list[tuple[Case, str]]:
        """The battery in the direction that holds most, and a few forward-only cases (no graph is kept there)."""
        directions = self.plan.directions
        levels = dict.fromkeys(directions, self.plan.level)
        if len(directions) == 2:
            levels["fwd"] = "smoke"
        found = []
        for direction, level in levels.items():
            found += battery(
                level,
                self.dtype,
                direction,
                capabilities=self.plan.backend.capabilities,
                contract=self.plan.contract,
                masks=self.plan.masks,
                device=self.plan.device,
            )
        return found

    def oracle(self, name: str) -> None:
        for case, distribution in self.cases():
            self.one(name, case, distribution)

    def one(self, name: str, case: Case, distribution: str) -> None:
        """One case against the oracle."""
        inputs = self.subject.inputs(case, distribution)
        try:
            verdict = self.subject.verdict(inputs)
        except Refused as refusal:
            self._add(name, case, distribution, REFUSED, str(refusal))
            return
        except Failed as failure:
            self._fail(Failure(name, case, distribution, self.plan.seed, "", (), None, LARGEST, str(failure)))
            return
        if verdict.ok:
            self._add(name, case, distribution, OK, "", verdict.error_over_budget)
            return
        tensor, error = max(verdict.errors.items(), key=lambda item: item[1]["over_budget"], default=("", {}))
        first = next((n for n, e in verdict.errors.items() if e["over_budget"] > 1), tensor)
        if (
            first == "out" or first == "lse"
        ):  # what is wrong in the forward is wrong in the backward for that reason
            tensor, error = first, verdict.errors[first]
        self._fail(
            Failure(
                name,
                case,
                distribution,
                self.plan.seed,
                tensor,
                tuple(error.get("worst", ())),
                error.get("max_z"),
                error.get("over_budget", LARGEST),
                error.get("reason", verdict.reason),
            )
        )

    def property(self, name: str) -> None:
        """One property; it passes as a whole."""
        findings: list[Finding] = []
        try:
            findings = list(PROPERTIES[name].run(self.subject))
        except Refused as refusal:
            self._add(name, None, "randn", REFUSED, str(refusal))
            return
        except Failed as failure:
            self._add(name, None, "randn", WRONG, str(failure))
            base = Case(q_len=65, k_len=65, q_heads=4, head_dim=64, dtype=self.dtype)  # type: ignore[arg-type]
            self._fail(
                Failure(name, base, "randn", self.plan.seed, "", (), None, LARGEST, str(failure)), False
            )
            return
        if not findings:
            self._add(name, None, "randn", OK)
        for f in findings:
            z = f.error_over_budget if f.error_over_budget < LARGEST else None
            self._fail(
                Failure(
                    name,
                    f.case,
                    f.distribution,
                    self.plan.seed,
                    f.tensor,
                    f.worst,
                    z,
                    f.error_over_budget,
                    f.reason,
                )
            )

    def protocol(self, name: str) -> None:
        """How the backend works: inputs untouched, calls repeatable, storage not cached."""
        found = next((case for _, case in self.subject.any_case()), None)
        if found is None:
            return
        inputs = self.subject.inputs(found)
        others = make_inputs(found, self.plan.seed + 1, self.plan.device)
        references = self.subject.reference(inputs), self.subject.reference(others)
        try:
            self.subject.answer(inputs)
            faults = protocol_faults(self.plan.backend, inputs, others, *references)
        except (Refused, NotImplementedError) as refusal:
            self._add(name, found, "randn", REFUSED, str(refusal))
            return
        except Exception as problem:  # noqa: BLE001 - whatever a backend raises is its failure, not ours
            faults = [f"raises {type(problem).__name__}: {problem}"]
        if not faults:
            self._add(name, found, "randn", OK)
        for fault in faults:
            self._fail(Failure(name, found, "randn", self.plan.seed, "", (), None, LARGEST, fault, (fault,)))

    def _add(
        self,
        name: str,
        case: Case | None,
        distribution: str,
        status: str,
        reason: str = "",
        error: float | None = None,
    ) -> None:
        self.report.outcomes.append(Outcome(name, case, self.dtype, distribution, status, reason, error))

    def _fail(self, failure: Failure, listed: bool = True) -> None:
        if listed:
            self._add(
                failure.check,
                failure.case,
                failure.distribution,
                WRONG,
                failure.reason,
                failure.error_over_budget,
            )
        # What is known needs no search for a smaller case; with --case it is asked about, and told.
        known = self.settles and is_known(self.plan.backend, self.plan.device, failure)
        self.report.failures.append(failure if known else self._explained(failure))

    def _explained(self, failure: Failure) -> Failure:
        case, distribution = failure.case, failure.distribution
        explained = [f for f in self.report.failures if f.command]
        if failure.check == ORACLE and sum(f.check == ORACLE for f in explained) < EXPLAINED:
            case, distribution = smallest_failing(self.subject, case, distribution)
        if not failure.causes and len(explained) < DIAGNOSED:
            failure = replace(failure, causes=self._causes(failure, case, distribution))
        contract = self.plan.given_contract
        command = command_for(self.plan.backend.name, case, distribution, failure.seed, contract)
        return replace(failure, smallest=case, command=command)

    def _causes(self, failure: Failure, smallest: Case, distribution: str) -> tuple[str, ...]:
        # The case as it failed shows a pattern that the smallest, of one query or key, cannot.
        causes = causes_of(self.subject, failure, failure.case, failure.distribution)
        return causes or causes_of(self.subject, failure, smallest, distribution)


def parametrize_with_backends(
    *backends: Given, level: str = "standard", **options: Any
) -> Callable[[Test], Test]:
    """A pytest decorator: the test is run once for each (backend, dtype, check), and calls what it is given.

    A plug-in author's whole test file:

        @ab.parametrize_with_backends("mine")
        def test_conformance(check):
            check()
    """
    import pytest

    parameters = []
    for given in backends:
        label = (
            given
            if isinstance(given, str)
            else getattr(given, "name", "") or getattr(given, "__name__", "backend")
        )
        for dtype in _among("dtype", options.get("dtypes"), tuple(DTYPES)):
            for name in (ORACLE, PROTOCOL, *(PROPERTIES if level != "smoke" else ())):
                one = _OneCheck(
                    given, name, dtype, level, {k: v for k, v in options.items() if k != "dtypes"}
                )
                parameters.append(pytest.param(one, id=f"{label}-{dtype}-{name}"))
    return pytest.mark.parametrize("check", parameters)  # type: ignore[return-value]


@dataclass(frozen=True)
class _OneCheck:
    # One named check of one backend in one dtype, as a test calls it.
    given: Given
    name: str
    dtype: str
    level: str
    options: dict[str, Any]

    def __call__(self) -> None:
        """Run the check; AssertionError with the failures, or a pytest skip where everything was refused."""
        import pytest

        wanted: dict[str, Any] = {
            "device": "auto",
            "seed": 0,
            "masks": None,
            "directions": None,
            "contract": None,
        } | self.options
        plan = _plan(self.given, self.level, dtypes=(self.dtype,), **wanted)
        report = Report(plan.backend.name, self.level, plan.device, plan.seed, plan.contract)
        if self.dtype in plan.dtypes:
            run = _Run(plan, report, self.dtype)
            run.parts()[self.name](self.name)
            settle_known_defects(plan.backend, report)
        if report.failures or report.gone:
            raise AssertionError(str(report))
        if not any(o.status == OK for o in report.outcomes):
            pytest.skip(f"{plan.backend.name} takes no {self.dtype} case of {self.name}")


__all__ = ["Failure", "Report", "check", "judge", "parametrize_with_backends"]
