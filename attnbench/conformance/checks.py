"""The checks of one dtype: the battery against the oracle, the protocol and the properties, into a report."""

from __future__ import annotations

from collections.abc import Callable

from attnbench.conformance.battery import battery
from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.explain import Explainer
from attnbench.conformance.known import is_known
from attnbench.conformance.plan import Plan
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.properties.property import PropertyFailure
from attnbench.conformance.protocol import protocol_faults
from attnbench.conformance.report import (
    OK,
    ORACLE,
    PROTOCOL,
    REFUSED,
    WRONG,
    CheckOutcome,
    Failure,
    Report,
)
from attnbench.conformance.subject import Failed, Refused, Subject
from attnbench.errors import AttnbenchError
from attnbench.judge.verdict import LARGEST, TensorError, Verdict
from attnbench.problem import Case, make_inputs


class ChecksOfDtype:
    """Runs the checks of one dtype; each adds its outcomes and failures to the report."""

    def __init__(self, plan: Plan, report: Report, dtype: str, settles: bool = True) -> None:
        self.plan, self.report, self.dtype, self.settles = plan, report, dtype, settles
        self.without_backward = self._refused_backward() if len(plan.directions) == 2 else None
        self.directions = plan.directions if self.without_backward is None else ("fwd",)
        backward = "fwd_bwd" in self.directions
        self.subject = Subject(
            plan.backend, plan.device, dtype, plan.seed, plan.contract, plan.masks, backward
        )
        self.explainer = Explainer(plan, self.subject, report)

    def run(self) -> None:
        """Every check of the plan, in the order of CHECKS."""
        whole: dict[str, Callable[[], None]] = {ORACLE: self.check_battery, PROTOCOL: self.check_protocol}
        for name in self.plan.checks:
            if name in whole:
                whole[name]()
            else:
                self.check_property(name)

    def run_on(self, name: str, case: Case, distribution: str) -> None:
        """One check on a case that the caller names."""
        if name == ORACLE:
            self.check_case(case, distribution)
        elif name == PROTOCOL:
            self.check_protocol_of(case, distribution)
        else:
            raise AttnbenchError(f"the check {name!r} chooses its own cases; drop the case")

    def draw_cases(self) -> list[tuple[Case, str]]:
        """The battery, with the backward if there is one, and a few forward-only cases (those keep no graph)."""
        levels = dict.fromkeys(self.directions, self.plan.level)
        if len(self.directions) == 2:
            levels["fwd"] = "smoke"
        return [drawn for direction, level in levels.items() for drawn in self._battery(level, direction)]

    def _battery(self, level: str, direction: str) -> list[tuple[Case, str]]:
        return battery(
            level,
            self.dtype,
            direction,
            capabilities=self.plan.backend.capabilities,
            contract=self.plan.contract,
            masks=self.plan.masks,
            device=self.plan.device,
        )

    def _refused_backward(self) -> tuple[Case, str] | None:
        """A case and the reason if this device or dtype has no backward: the forward is then checked in full."""
        cases = [case for case, _ in self._battery("smoke", "fwd_bwd")]
        reasons = [self.plan.backend.refuses(case, self.plan.device) for case in cases]
        refused = [(case, reason.reason) for case, reason in zip(cases, reasons, strict=True) if reason]
        return refused[0] if refused and len(refused) == len(cases) else None

    def check_battery(self) -> None:
        if self.without_backward is not None:
            case, reason = self.without_backward
            self._add(ORACLE, case, "randn", REFUSED, reason)
        for case, distribution in self.draw_cases():
            self.check_case(case, distribution)

    def check_case(self, case: Case, distribution: str) -> None:
        """One case against the oracle."""
        try:
            observation = observe(self.subject, self.subject.inputs(case, distribution))
        except Refused as refusal:
            self._add(ORACLE, case, distribution, REFUSED, str(refusal))
            return
        except Failed as failure:
            self._fail(self._broken(ORACLE, case, distribution, str(failure)))
            return
        if observation.verdict.ok:
            self._add(ORACLE, case, distribution, OK, "", observation.verdict.error_over_budget)
            return
        tensor, error = _worst(observation.verdict)
        self._fail(
            Failure(
                check=ORACLE,
                case=case,
                distribution=distribution,
                seed=self.plan.seed,
                tensor=tensor,
                worst=error.worst,
                z=error.max_z,
                error_over_budget=error.over_budget,
                reason=error.reason,
                tensors=tuple(observation.verdict.wrong),
            ),
            observation,
        )

    def check_property(self, name: str) -> None:
        """One property: it passes as a whole if any case was computed. Failures before an exception count."""
        broken: list[PropertyFailure] = []
        before = self.subject.answers
        status, reason = OK, ""
        try:
            for each in PROPERTIES[name].run(self.subject):
                broken.append(each)
        except Refused as refusal:
            status, reason = REFUSED, str(refusal)
        except Failed as failure:
            status, reason = WRONG, str(failure)
            base = Case(q_len=65, k_len=65, q_heads=4, head_dim=64, dtype=self.dtype)  # type: ignore[arg-type]
            self._fail(self._broken(name, base, "randn", reason), listed=False)
        if status == OK and self.subject.answers == before:
            status, reason = REFUSED, "takes no case of it"
        if status == WRONG or not broken:
            self._add(name, None, "randn", status, reason)
        for f in broken:
            z = f.error_over_budget if f.error_over_budget < LARGEST else None
            self._fail(
                Failure(
                    check=name,
                    case=f.case,
                    distribution=f.distribution,
                    seed=self.plan.seed,
                    tensor=f.tensor,
                    worst=f.worst,
                    z=z,
                    error_over_budget=f.error_over_budget,
                    reason=f.reason,
                    tensors=(f.tensor,),
                )
            )

    def check_protocol(self) -> None:
        case = next((case for _, case in self.subject.any_case()), None)
        if case is not None:
            self.check_protocol_of(case)

    def check_protocol_of(self, case: Case, distribution: str = "randn") -> None:
        """One case against the protocol: inputs untouched, calls repeatable, nothing cached by storage."""
        inputs = self.subject.inputs(case, distribution)
        others = make_inputs(case, self.plan.seed + 1, self.plan.device, distribution)
        references = self.subject.reference(inputs), self.subject.reference(others)
        try:
            self.subject.answer(inputs)
            faults = protocol_faults(self.plan.backend, inputs, others, *references)
        except (Refused, NotImplementedError) as refusal:
            self._add(PROTOCOL, case, distribution, REFUSED, str(refusal))
            return
        except Failed as failure:
            faults = [str(failure)]
        except Exception as error:  # noqa: BLE001 - any exception of a backend is a failure of that backend
            faults = [f"raises {type(error).__name__}: {error}"]
        if not faults:
            self._add(PROTOCOL, case, distribution, OK)
        for fault in faults:
            self._fail(self._broken(PROTOCOL, case, distribution, fault, (fault,)))

    def _broken(
        self, name: str, case: Case, distribution: str, reason: str, causes: tuple[str, ...] = ()
    ) -> Failure:
        # A failure without a wrong tensor.
        return Failure(
            check=name,
            case=case,
            distribution=distribution,
            seed=self.plan.seed,
            reason=reason,
            causes=causes,
        )

    def _add(
        self,
        name: str,
        case: Case | None,
        distribution: str,
        status: str,
        reason: str = "",
        error: float | None = None,
        tensors: tuple[str, ...] = (),
    ) -> None:
        self.report.outcomes.append(
            CheckOutcome(
                check=name,
                case=case,
                dtype=self.dtype,
                distribution=distribution,
                status=status,
                reason=reason,
                error_over_budget=error,
                tensors=tensors,
            )
        )

    def _fail(self, failure: Failure, observation: Observation | None = None, listed: bool = True) -> None:
        if listed:
            self._add(
                failure.check,
                failure.case,
                failure.distribution,
                WRONG,
                failure.reason,
                failure.error_over_budget,
                failure.tensors,
            )
        # A known defect is not explained, unless the caller names the case.
        known = self.settles and is_known(self.plan.backend, self.plan.device, failure)
        self.report.failures.append(failure if known else self.explainer.explain(failure, observation))


def _worst(verdict: Verdict) -> tuple[str, TensorError]:
    """The wrong tensor to report: the forward's first, since it spoils the backward, else the one most off."""
    if not verdict.wrong:  # no gradients came back
        return "", TensorError(over_budget=LARGEST, reason=verdict.reason)
    first = next(iter(verdict.wrong))
    if first not in ("out", "lse"):
        first = max(verdict.wrong, key=lambda name: verdict.wrong[name].over_budget)
    return first, verdict.wrong[first]
