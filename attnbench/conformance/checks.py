"""The checks of one dtype: the battery against the oracle, the protocol and the properties, into a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import CLAIMS
from attnbench.conformance.battery import SIZES, Request, ordinary
from attnbench.conformance.battery_factors import Row, with_single_masks
from attnbench.conformance.claims import CAUSES, measure, varying
from attnbench.conformance.contract import Search
from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.empty_rows import WORDS as OF_EMPTY_ROWS
from attnbench.conformance.empty_rows import given_without_key
from attnbench.conformance.explain import Explainer
from attnbench.conformance.known import is_known
from attnbench.conformance.limits import FACTORS, covering_factor, grouped, without_numbers
from attnbench.conformance.narrow import Narrow
from attnbench.conformance.outcome import LIMIT, OK, ORACLE, PROTOCOL, REFUSED, WRONG, CheckOutcome, Failure
from attnbench.conformance.plan import Plan
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.properties.property import PropertyFailure
from attnbench.conformance.protocol import FIRST_IS_WRONG, protocol_faults
from attnbench.conformance.report import Report
from attnbench.conformance.steps import CRASHED_WORDS, Failed, Record, Steps, Stopped
from attnbench.conformance.subject import Raised, Refused, Subject
from attnbench.errors import AttnbenchError, place_of
from attnbench.judge.contracts import is_beyond
from attnbench.judge.verdict import LARGEST, TensorError, Verdict
from attnbench.problem import Case, make_inputs

# With the exception's words, and the factor that it covers if that is known.
RaisedCase = tuple[Row, Case, str, str]
MOST_FAILED = 12  # cases of one dtype and direction, after which the rest of its battery is left out
LARGEST_ASKED = 1 << 25  # elements of q, or scores: a larger case is not run only to learn whether it raises
CRASHED = "it crashed here, and computes other cases with each of these values: no limit of its domain"


class ChecksOfDtype:
    """Runs the checks of one dtype; each adds its outcomes and failures to the report."""

    def __init__(
        self, plan: Plan, report: Report, dtype: str, settles: bool = True, steps: Steps | None = None
    ) -> None:
        self.plan, self.report, self.dtype, self.settles = plan, report, dtype, settles
        self.steps = steps or Steps()
        self.subject = Subject(
            *(plan.backend, plan.device, dtype, plan.seed, plan.contract, plan.masks),
            where=plan.where,
            steps=self.steps,
        )
        self.without_backward = self._refused_backward() if len(plan.directions) == 2 else None
        self.directions = plan.directions if self.without_backward is None else ("fwd",)
        self.subject.backward = "fwd_bwd" in self.directions
        self.subject.facts = report.facts
        self.is_function = isinstance(plan.backend, FunctionBackend)
        self.raised: list[RaisedCase] = []  # of a dtype in which a plain function computes nothing
        self.explainer = Explainer(plan, self.subject, report)
        self.search = Search() if plan.finds_contract else None

    def run(self) -> None:
        """Every check of the plan, in the order of CHECKS."""
        if ORACLE in self.plan.checks:
            self.check_battery()
        if self.raised:
            return
        self._fit_properties()
        for name in self.plan.checks:
            if name == PROTOCOL:
                self.check_protocol()
            elif name in CLAIMS:
                self.check_claim(name)
            elif name != ORACLE:
                self.check_property(name)
        self.explainer.rank_causes()

    def run_on(self, name: str, case: Case, distribution: str) -> None:
        """One check on a case that the caller names."""
        if name == ORACLE:
            self.check_case(case, distribution)
        elif name == PROTOCOL:
            self.check_protocol_of(case, distribution)
        else:
            raise AttnbenchError(f"the check {name!r} chooses its own cases; drop the case")

    def _request(self, level: str, direction: str) -> Request:
        plan, makers = self.plan, self.subject.makers
        capabilities = plan.backend.capabilities
        return Request(
            self.dtype, direction, capabilities, plan.contract, makers, plan.device, level, plan.where
        )

    def _wide(self, request: Request) -> Request:
        """The request with each kind of mask alone, too, for a function that takes no combination."""
        if self.plan.masks is not None:
            return request
        return replace(request, masks=with_single_masks(request.masks, self.plan.backend.capabilities.masks))

    def _narrow(self, request: Request) -> Narrow:
        subject = self.subject
        words = lambda case: subject.turned_down(case)[0]  # noqa: E731
        return Narrow(self._wide(request), subject.computes, words, self.plan.where_text)

    def _refused_backward(self) -> tuple[Case, str] | None:
        """A case and the reason, if this device or dtype has no backward: the forward is then checked in full."""
        cases = [case for _, case in ordinary(self._request("smoke", "fwd_bwd"))]
        reasons = [self.plan.backend.refuses(case, self.plan.device) for case in cases]
        refused = [(case, reason.reason) for case, reason in zip(cases, reasons, strict=True) if reason]
        return refused[0] if refused and len(refused) == len(cases) else None

    def check_battery(self) -> None:
        """The battery in the direction that holds most, then a few forward-only cases (no graph is kept there)."""
        if self.without_backward is not None:
            case, reason = self.without_backward
            self._add(ORACLE, case, "randn", REFUSED, reason)
        level = self.plan.level
        accepted: list[Row] = []
        raised: list[RaisedCase] = []
        for direction in sorted(self.directions, reverse=True):  # fwd_bwd first
            newly, raising = self._check_direction(direction, level)
            raised += raising
            accepted += newly
            if newly:
                level = "smoke"
            elif direction == "fwd_bwd":
                self.subject.backward = False
        raises = any(case.direction == "fwd_bwd" for _, case, _, _ in raised)
        if accepted and "fwd_bwd" in self.directions and not self.subject.backward and not raises:
            self._note_missing_backward()
        if accepted:
            self._settle_raised(raised, accepted)
        else:
            self.raised = raised

    def settle_dtype(self, is_limit: bool) -> None:
        """Report the exceptions of a dtype without any answer: a suspected limit if another dtype has one."""
        for row, case, words, _ in self.raised[:1] if is_limit else self.raised:
            if is_limit:
                self.report.limits += grouped([("dtype", self.dtype, words)])
                self._add(ORACLE, case, row.distribution, LIMIT, words)
            else:
                self._fail(self._broken(ORACLE, case, row.distribution, words))

    def _check_direction(self, direction: str, level: str) -> tuple[list[Row], list[RaisedCase]]:
        """The battery of one direction, what is refused replaced; the accepted rows, and those that raised."""
        request = self._request(level, direction)
        rows = ordinary(request)
        accepted: list[Row] = []
        raised: list[RaisedCase] = []

        def check(row: Row, case: Case) -> None:
            try:
                self.check_case(case, row.distribution, reports_exceptions=not self.is_function)
            except Raised as error:
                raised.append((row, case, str(error), ""))
            if self.subject.computes(case):
                accepted.append(row)

        for row, case in rows:
            if self._is_enough(direction):
                return accepted, raised
            check(row, case)
        narrow = self._narrow(request)
        for row, case in narrow.further(accepted, SIZES[level] - len(accepted)):
            if self._is_enough(direction):
                return accepted, raised
            check(row, case)
        for factor, row, case in narrow.turned_down:
            words, is_exception = self.subject.turned_down(case)
            if words.startswith(CRASHED_WORDS):
                self._fail(self._broken(ORACLE, case, row.distribution, words))
            elif is_exception and self.is_function:
                raised.append((row, case, words, factor))
            else:
                self._add(ORACLE, case, row.distribution, REFUSED, words)
        return accepted, raised

    def _is_enough(self, direction: str) -> bool:
        """Whether the battery of a direction may end, since many of its cases failed: more tell nothing new."""
        settled = [
            f
            for f in self.report.failures
            if f.check == ORACLE and f.case.dtype == self.dtype and f.case.direction == direction
        ]
        failed = sum(not is_known(self.plan.backend, self.plan.device, f) for f in settled)
        if failed < MOST_FAILED:
            return False
        if self.dtype not in self.report.cut_short:
            self.report.cut_short.append(self.dtype)
        return True

    def _settle_raised(self, raised: list[RaisedCase], accepted: list[Row]) -> None:
        """Tell the suspected limits of a plain function from its crashes."""
        limits: list[tuple[str, Any, str]] = []
        # Rows that differ in one factor first: their words tell which factor the others raise for.
        for row, case, words, factor in sorted(raised, key=lambda each: not each[3]):
            if not self.subject.is_limit(words):
                factor = self._covering_factor(row, case, accepted, factor) or ""
                if not factor:
                    self._fail(self._broken(ORACLE, case, row.distribution, words, (CRASHED,)))
                    continue
            if factor:
                value = case.direction if factor == "direction" else getattr(row, factor)
                limits.append((factor, value, words))
            self.subject.limits.add(without_numbers(words))
            self._add(ORACLE, case, row.distribution, LIMIT, words)
        self.report.limits += [limit for limit in grouped(limits) if limit not in self.report.limits]

    def _covering_factor(self, row: Row, case: Case, accepted: list[Row], factor: str) -> str | None:
        """The factor whose value in the row raises in every accepted row; `factor` if that is known to be the one."""
        if case.direction == "fwd_bwd" and not self.subject.backward:
            return "direction"
        if self.subject.computes_now(case) or not self.subject.turned_down(case)[1]:
            return None
        request = self._wide(self._request(self.plan.level, case.direction))

        def computes(row: Row) -> bool | None:
            case = request.case(row)
            if case is None or max(case.rows * case.k_len, case.rows * case.head_dim) > LARGEST_ASKED:
                return None
            if self.subject.computes(case):
                return True
            # A refusal tells nothing about the exception, nor does an exception that does not come again.
            return self.subject.computes_now(case) if self.subject.turned_down(case)[1] else None

        return covering_factor(row, accepted, computes, (factor,) if factor in FACTORS else FACTORS)

    def _fit_properties(self) -> None:
        """Let properties draw cases of a size, direction and masks that the backend takes, if it does not take theirs.

        What is chosen depends on the backend alone, so that a property that runs alone draws the same cases.
        """
        if next(self.subject.any_case(), None) is not None:
            return
        for direction in sorted(self.directions, reverse=True):
            narrow = self._narrow(self._request("standard", direction))
            narrow.computes = self.subject.takes  # what is declared need not be tried
            row = narrow.typical()
            if row is None:
                continue
            self.subject.makers = narrow.request.masks
            self.subject.backward = direction == "fwd_bwd"
            names = ("batch", "q_len", "k_len", "q_heads", "kv_heads", "head_dim", "v_dim")
            values = (row.batch, *row.lengths, *row.heads, *row.head_dims)
            self.subject.sizes = dict(zip(names, values, strict=True))
            self.subject.more_lengths = narrow.spread()
            return

    def _note_missing_backward(self) -> None:
        """Say that the forward alone is checked, and in which words a plain function refuses its backward."""
        refusals = (o for o in self.report.outcomes if o.dtype == self.dtype and o.status == REFUSED)
        words = [o.reason for o in refusals if o.case is not None and o.case.direction == "fwd_bwd"]
        if words:
            self.report.without_backward[self.dtype] = Counter(words).most_common(1)[0][0]

    def _step(self, name: str, case: Case | None, distribution: str, work: Callable[[], None]) -> None:
        """Do one step of the check, or take over what an earlier process found in it; `work` may raise Raised."""
        report, before = self.report, (len(self.report.outcomes), len(self.report.failures))
        worked, searched = False, self._searched()

        def record() -> Record:
            nonlocal worked
            worked, words, known = True, "", self.subject.known()
            self.steps.tell(name, self.dtype, case, report.outcomes)
            try:
                work()
            except Raised as error:
                words = str(error)
            outcomes, failures = report.outcomes[before[0] :], report.failures[before[1] :]
            return {
                "is_done": bool(words or outcomes or failures) and searched == self._searched(),
                "raised": words,
                "outcomes": [o.to_json() for o in outcomes],
                "failures": [f.to_json() for f in failures],
                "known": self.subject.learned(known),
            }

        where = "its own cases" if case is None else f"{case.id} {distribution}"
        found = self.steps.once(f"{name} {self.dtype} {where}", record)
        if not worked:
            report.outcomes += [CheckOutcome.from_json(o) for o in found["outcomes"]]
            report.failures += [Failure.from_json(f) for f in found["failures"]]
            self.subject.learn(found["known"])
        if found["raised"]:
            raise Raised(found["raised"])

    def _searched(self) -> tuple[Any, ...]:
        """What the search for a contract and for a declaration has come to: a step that changes it is done again."""
        search = self.search
        return self.plan, search, search and search.found, search and len(search.held)

    def check_case(self, case: Case, distribution: str, reports_exceptions: bool = True) -> None:
        """One case against the oracle; raises Raised if exceptions of the backend are not to be reported here."""
        if self.search is not None and is_beyond(self.search.found, case, distribution):
            return
        self._step(ORACLE, case, distribution, lambda: self._judge(case, distribution, reports_exceptions))

    def _judge(self, case: Case, distribution: str, reports_exceptions: bool) -> None:
        try:
            observation = observe(self.subject, self.subject.inputs(case, distribution))
        except Refused as refusal:
            self._add(ORACLE, case, distribution, REFUSED, str(refusal))
            return
        except Failed as error:
            if isinstance(error, Raised) and not reports_exceptions:
                raise
            self._fail(self._broken(ORACLE, case, distribution, str(error)))
            return
        if observation.verdict.ok:
            self._add(ORACLE, case, distribution, OK, "", observation.verdict.error_over_budget)
            return
        tensor, worst = _worst(observation.verdict)
        failure = Failure(
            check=ORACLE,
            case=case,
            distribution=distribution,
            seed=self.plan.seed,
            tensor=tensor,
            worst=worst.worst,
            z=worst.max_z,
            error_over_budget=worst.over_budget,
            reason=worst.reason,
            tensors=tuple(observation.verdict.wrong),
        )
        if not self._is_of_empty_rows(failure, observation):
            self._fail_unless_held(failure, observation)

    def _is_of_empty_rows(self, failure: Failure, observation: Observation) -> bool:
        """Whether a function gives something known for rows without a key: told once, then taken as declared."""
        backend = self.plan.backend
        if not isinstance(backend, FunctionBackend) or "empty_rows" in backend.declared:
            return False
        given = given_without_key(observation)
        if given:
            reason = f"rows without a key give {OF_EMPTY_ROWS[given]}, and 0 is right"
            answer = f"if that is meant, --declare empty_rows={given}; cases with such rows are then refused"
            failure = replace(failure, tensor="out", reason=reason, causes=(answer,))
            self._add(
                ORACLE, failure.case, failure.distribution, WRONG, reason, failure.error_over_budget, ("out",)
            )
            self.report.failures.append(self.explainer.as_it_is(failure))
            self.plan = replace(self.plan, backend=backend.declaring(empty_rows=given))
            self.subject.backend, self.explainer.plan = self.plan.backend, self.plan
        return bool(given)

    def _fail_unless_held(self, failure: Failure, observation: Observation) -> None:
        """Hold a failure back if another contract allows it; take that contract if it explains the error as well."""
        search = self.search
        if search is None or search.found:
            self._fail(failure, observation)
        elif not search.fits(self.subject, observation):
            self.settle_contract("")
            self._fail(failure, observation)
        else:
            search.hold(failure, observation)
            if search.found:
                self.plan = replace(self.plan, contract=search.found, given_contract=search.found)
                self.subject.contract, self.explainer.plan = search.found, self.plan
                self.settle_contract(search.found)

    def settle_contract(self, found: str) -> None:
        """Report the failures that were held back, unless the contract that was found allows them all."""
        search = self.search
        if search is None:
            return
        held, search.held = search.held, []
        for failure, observation, hint in held:
            if found in search.fitting:
                self._add(failure.check, failure.case, failure.distribution, OK)
                continue
            words = failure.reason + hint if search.fitting else failure.reason
            self._fail(replace(failure, reason=words), observation)
        if not search.fitting:
            self.search = None

    def check_property(self, name: str) -> None:
        """One property: it passes as a whole if any case was computed. Failures before an exception count."""
        self._step(name, None, "randn", lambda: self._run_property(name))

    def _run_property(self, name: str) -> None:
        broken: list[PropertyFailure] = []
        base = Case(q_len=65, k_len=65, q_heads=4, head_dim=64, dtype=self.dtype)  # type: ignore[arg-type]
        before = self.subject.answers
        status, reason = OK, ""
        try:
            with self.steps.call(base, "randn", name):
                for each in PROPERTIES[name].run(self.subject):
                    broken.append(each)
        except Refused as refusal:
            status, reason = REFUSED, str(refusal)
        except Failed as error:
            status, reason = WRONG, str(error)
            if self.subject.is_limit(reason):
                self._add(name, None, "randn", REFUSED, reason)
                return
            self._fail(self._broken(name, base, "randn", reason), listed=False)
        broken = self._without_jitter(name, broken) if status == OK else broken
        if status == OK and self.subject.answers == before:
            status, reason = REFUSED, "takes no case of it"
        if status == WRONG or not broken:
            self._add(name, None, "randn", status, reason)
        search = self.search if broken and status == OK else None
        if search is not None and not search.found and not search.narrow(partial(self._holds_under, name)):
            self.settle_contract("")
        for f in broken:
            z = f.error_over_budget if f.error_over_budget < LARGEST else None
            failure = Failure(
                check=name,
                case=f.case,
                distribution=f.distribution,
                seed=self.plan.seed,
                tensor=f.tensor,
                worst=f.worst,
                z=z,
                error_over_budget=f.error_over_budget,
                reason=f.reason,
                causes=f.causes,
                tensors=(f.tensor,),
            )
            if search is not None and not search.found and search.fitting:
                search.hint = f"; --contract {search.fitting[-1]} allows it"
                search.hold(failure)
            else:
                self._fail(failure)

    def _holds_under(self, name: str, contract: str) -> bool:
        """Whether a property that does not hold under flash holds under another contract."""
        own, self.subject.contract = self.subject.contract, contract
        try:
            return next(iter(PROPERTIES[name].run(self.subject)), None) is None
        except (Refused, Failed):
            return False
        finally:
            self.subject.contract = own

    def _without_jitter(self, name: str, broken: list[PropertyFailure]) -> list[PropertyFailure]:
        """The failures but those of a tensor whose bits differ from call to call anyway, which is told as a claim."""
        if not any(f.is_bitwise for f in broken):
            return broken
        again = {(f.case, f.tensor) for f in PROPERTIES[name].run(self.subject)}
        return [
            f
            for f in broken
            if not f.is_bitwise
            or ((f.case, f.tensor) in again and f.tensor not in varying(self.subject, f.case))
        ]

    def check_claim(self, name: str) -> None:
        """One claim to the bit: measured whether it is claimed or not, and wrong if it is claimed and does not hold."""
        try:
            claim = measure(name, self.subject, self.plan.repeats, self.plan.level)
        except Exception as error:  # noqa: BLE001 - other checks report what a backend raises
            self._add(name, None, "randn", REFUSED, f"not asked: raises {type(error).__name__}: {error}")
            return
        self.report.claims.append(claim)
        if claim.is_claimed and claim.difference is not None:
            difference = claim.difference
            failure = self._broken(name, difference.case, "randn", f"claimed, and {claim}", (CAUSES[name],))
            self._fail(
                replace(
                    failure, tensor=difference.tensor, worst=difference.worst, tensors=(difference.tensor,)
                )
            )
        else:
            self._add(name, None, "randn", OK if claim.calls else REFUSED, str(claim))

    def check_protocol(self) -> None:
        case = next((case for _, case in self.subject.any_case()), None)
        if case is not None:
            self.check_protocol_of(case)

    def check_protocol_of(self, case: Case, distribution: str = "randn") -> None:
        """One case against the protocol: inputs untouched, calls repeatable, nothing cached by storage."""
        self._step(PROTOCOL, case, distribution, lambda: self._run_protocol(case, distribution))

    def _run_protocol(self, case: Case, distribution: str) -> None:
        inputs = self.subject.inputs(case, distribution)
        others = make_inputs(case, self.plan.seed + 1, self.plan.device, distribution)
        references = self.subject.reference(inputs), self.subject.reference(others)
        try:
            self.subject.answer(inputs)
            with self.steps.call(case, distribution, PROTOCOL):
                faults = protocol_faults(self.plan.backend, inputs, others, *references)
        except (Refused, NotImplementedError) as refusal:
            self._add(PROTOCOL, case, distribution, REFUSED, str(refusal))
            return
        except Failed as failure:
            faults = [str(failure)]
        except Exception as error:  # noqa: BLE001 - any exception of a backend is a failure of that backend
            faults = [f"raises {type(error).__name__}: {error}{place_of(error)}"]
        if not faults:
            self._add(PROTOCOL, case, distribution, OK)
        is_wrong = any(FIRST_IS_WRONG in fault for fault in faults)
        for fault in faults:
            # If the first call is wrong, so are the others: that is no fault of the protocol.
            follows = is_wrong and "wrong" in fault
            broken = self._broken(PROTOCOL, case, distribution, fault, () if follows else (fault,))
            self._fail(replace(broken, tensors=("out",)) if follows else broken)

    def add_crashes(self) -> None:
        """Report the calls of this dtype that ended a process while the check only asked whether a case is taken."""
        for crash in self.steps.crashed.values():
            case, told = Case.from_json(crash["case"]), [f.reason for f in self.report.failures]
            if case.dtype == self.dtype and crash["words"] not in told:
                self._fail(self._broken(ORACLE, case, crash["distribution"], crash["words"]))

    def fail_for_another_contract(self, words: str) -> None:
        """Report the first answer that needs another contract than other dtypes."""
        if self.search is not None and self.search.first is not None:
            self._fail(replace(self.search.first, reason=words, causes=(words,)))

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
        if self.settles and is_known(self.plan.backend, self.plan.device, failure):
            self.report.failures.append(failure)
            return
        try:
            explained = self.explainer.explain(failure, observation)
        except (Stopped, KeyboardInterrupt):  # the failure is told without its explanation
            self.report.failures.append(self.explainer.as_it_is(failure))
            raise
        self.report.failures.append(explained)


def _worst(verdict: Verdict) -> tuple[str, TensorError]:
    """The wrong tensor to report: the forward's first, since it spoils the backward, else the one most off."""
    if not verdict.wrong:  # no gradients came back
        return "", TensorError(over_budget=LARGEST, reason=verdict.reason)
    first = next(iter(verdict.wrong))
    if first not in ("out", "lse"):
        first = max(verdict.wrong, key=lambda name: verdict.wrong[name].over_budget)
    return first, verdict.wrong[first]
