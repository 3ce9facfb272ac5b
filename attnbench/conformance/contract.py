"""Another contract than flash is taken if it allows every error of a check and explains one in each dtype."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.outcome import Failure
from attnbench.conformance.subject import Failed, Refused, Subject
from attnbench.judge.contracts import FEWEST_ROWS, HYPOTHESES, explains, is_beyond
from attnbench.judge.verdict import LARGEST, Verdict, judge
from attnbench.problem import Case

MOST_KEPT = 3  # observations of failures that are held back
MOST_PROBES = 2  # runs that only look for a trace


class Search:
    """The contracts that still fit one dtype's answers, and the failures under flash that they would undo.

    `found` is the contract that also explains an error. `held` are the failures until then, with the observations of
    the first few and their hints; `first` is the first of all.
    """

    def __init__(self) -> None:
        self.fitting = tuple(HYPOTHESES)
        self.found = ""
        self.hint = ""  # on the last failure: a contract that allows it, and may or may not explain it
        self.probes = 0
        self.first: Failure | None = None
        self.held: list[tuple[Failure, Observation | None, str]] = []

    def narrow(self, fits: Callable[[str], bool]) -> bool:
        """Keep the contracts that fit; whether any does."""
        self.fitting = tuple(contract for contract in self.fitting if fits(contract))
        return bool(self.fitting)

    def hold(self, failure: Failure, observation: Observation | None = None) -> None:
        """Hold a failure back that a fitting contract allows."""
        self.first = self.first or failure
        self.held.append((failure, observation if len(self.held) < MOST_KEPT else None, self.hint))

    def fits(self, subject: Subject, observation: Observation) -> bool:
        """Whether one contract allows this error and all before it; sets `found` if it also explains this one."""
        # Not finite, or not of the right form: no rounding does that.
        self.hint = ""
        is_broken = observation.verdict.error_over_budget >= LARGEST or not observation.verdict.errors

        def fits(contract: str) -> bool:
            if is_beyond(contract, observation.case, observation.inputs.distribution):
                return True
            if is_broken or not verdict_under(contract, subject, observation).ok:
                return False
            is_explained = _explains(contract, observation)
            if is_explained is None and contract == "dense":
                is_explained = self._shows(contract, subject, observation.case)
            if is_explained:
                self.found = self.found or contract
            elif is_explained is None:
                self.hint = f"; --contract {contract} allows it"
            return is_explained is not False

        return self.narrow(fits)

    def _shows(self, contract: str, subject: Subject, case: Case) -> bool | None:
        """Whether the forward on large negative scores, which rounding moves most, has the trace this run lacks."""
        probe = replace(case, direction="fwd")
        if self.probes == MOST_PROBES or case.rows < FEWEST_ROWS:
            return None
        self.probes += 1
        try:
            observation = observe(subject, subject.inputs(probe, "negative_lse"))
        except (Refused, Failed):
            return None
        is_explained = _explains(contract, observation)
        return is_explained and verdict_under(contract, subject, observation).ok


def _explains(contract: str, observation: Observation) -> bool | None:
    answer, inputs = observation.answer, observation.inputs
    return explains(contract, inputs, observation.reference, answer.output.out)


def verdict_under(contract: str, subject: Subject, observation: Observation) -> Verdict:
    """The verdict on an answer that was observed, by another contract."""
    own, subject.contract = subject.contract, contract
    try:
        reference = subject.reference(observation.inputs)
    finally:
        subject.contract = own
    answer = observation.answer
    return judge(reference, answer.output, answer.gradients, observation.inputs)
