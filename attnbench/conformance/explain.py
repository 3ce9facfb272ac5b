"""A failure with its likely causes, a smaller case that fails alike, and the command that shows it again."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

from attnbench.backend.interface import CLAIMS
from attnbench.conformance.claims import options_of
from attnbench.conformance.diagnosis.diagnosis import guesses, of_words
from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.diagnosis.shrink import Smallest, first_words, smallest_failing
from attnbench.conformance.outcome import ORACLE, PROTOCOL, Failure
from attnbench.conformance.plan import Plan
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.report import Again, Report
from attnbench.conformance.subject import Failed, Refused, Subject
from attnbench.problem import Case

MOST_SHRUNK = 3  # failures of the oracle for which a smaller case is searched: each costs some dozens of runs
MOST_DIAGNOSED = 8  # failures for which causes are guessed; a report shows no more


class Explainer:
    """Explains failures of one subject; what the report holds already limits what is spent on the next."""

    def __init__(self, plan: Plan, subject: Subject, report: Report) -> None:
        self.plan, self.subject, self.report = plan, subject, report
        self._causes: dict[tuple[Case, str], tuple[str, ...]] = {}  # by case and distribution
        self._exact: dict[tuple[str, ...], frozenset[str]] = {}  # by causes: those whose answer was observed

    def explain(self, failure: Failure, observation: Observation | None = None) -> Failure:
        """The failure with causes, smallest case and command; `observation` is the run that failed, if it came back."""
        # One exception fails every case in the same words: it is explained once.
        by_reason = {f.reason: f for f in self.report.failures if f.command}
        is_new = failure.reason not in by_reason
        shrinks = is_new and sum(f.check == ORACLE for f in by_reason.values()) < MOST_SHRUNK
        causes = failure.causes if is_new else by_reason[failure.reason].causes
        diagnoses = not causes and len(by_reason) < MOST_DIAGNOSED
        if diagnoses:
            # Before any smaller case is run, which may write into the memory of the observed answer.
            causes = self._diagnose(failure, observation)
        smallest = Smallest(failure.case, failure.distribution)
        if shrinks and failure.check == ORACLE:
            way = first_words(failure.reason) if observation is None else observation.way_of_failing
            smallest = smallest_failing(self.subject, smallest, way)
        if diagnoses and not self._exact.get(causes) and smallest.observation is not None:
            of_smallest = self._words(smallest.observation)
            causes = of_smallest if self._exact.get(of_smallest) or not causes else causes
        command = self._command(failure, smallest)
        return replace(failure, causes=causes, smallest=smallest.case, command=command)

    def as_it_is(self, failure: Failure) -> Failure:
        """The failure with its command alone: its cause is known, and a smaller case might show another."""
        command = self._command(failure, Smallest(failure.case, failure.distribution))
        return replace(failure, smallest=failure.case, command=command)

    def _diagnose(self, failure: Failure, observation: Observation | None) -> tuple[str, ...]:
        by_words = of_words(failure.reason)
        if by_words:
            return tuple(guess.words for guess in by_words)
        key = failure.case, failure.distribution
        if key not in self._causes:
            if observation is None and failure.check != ORACLE:
                observation = self._observe(failure)
            self._causes[key] = () if observation is None else self._words(observation)
        if not self._causes[key] and failure.check in PROPERTIES:
            return (PROPERTIES[failure.check].catches,)  # the case is right as drawn
        return self._causes[key]

    def _observe(self, failure: Failure) -> Observation | None:
        """The case on which a property does not hold, with the inputs as drawn."""
        try:
            return observe(self.subject, self.subject.inputs(failure.case, failure.distribution))
        except (Refused, Failed):
            return None

    def _command(self, failure: Failure, smallest: Smallest) -> str:
        again = Again(
            self.plan.backend.name, failure.check, failure.seed, self.plan.given_contract, self.plan.declare
        )
        if failure.check in (ORACLE, PROTOCOL):
            return again.on(smallest.case, smallest.distribution)
        plan = self.plan
        more = options_of(plan.repeats, plan.level) if failure.check in CLAIMS else []
        return again.on_its_own_cases(
            self.subject.dtype, plan.masks, self.subject.backward, plan.where_text, more
        )

    def _words(self, observation: Observation) -> tuple[str, ...]:
        if observation.verdict.ok:
            return ()
        # Guesses of two kinds may be in the same words: a ragged tile left out is a tail tile and missing keys.
        likely = guesses(self.subject, observation)
        causes = tuple(dict.fromkeys(guess.words for guess in likely))
        self._exact[causes] = frozenset(guess.words for guess in likely if guess.is_exact)
        return causes

    def rank_causes(self) -> None:
        """Put the cause first that explains the most failures: one case alone may leave several open."""
        counts = Counter(words for exact in self._exact.values() for words in exact)

        def ranked(causes: tuple[str, ...]) -> tuple[str, ...]:
            exact = self._exact.get(causes, frozenset())
            first = next((n for n, words in enumerate(causes) if words in exact), len(causes))
            others = sorted(causes[first:], key=lambda words: -counts[words] if words in exact else 0)
            return (*causes[:first], *others)

        self.report.failures[:] = [replace(f, causes=ranked(f.causes)) for f in self.report.failures]
