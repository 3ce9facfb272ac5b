"""A failure with its likely causes, a smaller case that fails alike, and the command that shows it again."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import NamedTuple

from attnbench.backend.interface import CLAIMS
from attnbench.conformance.again import Again, address_of
from attnbench.conformance.claims import options_of
from attnbench.conformance.diagnosis.diagnosis import guesses, of_words
from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.diagnosis.shrink import Smallest, first_words, smallest_failing
from attnbench.conformance.outcome import ORACLE, PROTOCOL, Failure
from attnbench.conformance.plan import Plan
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.report import Report
from attnbench.conformance.steps import CRASHED_WORDS
from attnbench.conformance.subject import Failed, Refused, Subject
from attnbench.device import resolve_device
from attnbench.problem import Case

MOST_SHRUNK = 3  # failures of the oracle for which a smaller case is searched: each costs some dozens of runs
MOST_DIAGNOSED = 8  # failures for which causes are guessed; a report shows no more
# Explanations may take this share of the time of the check so far, and this long in any case.
SHARE, AT_LEAST_S = 0.2, 10.0
LARGE = 300_000  # scores: of a larger case, the smallest one found is diagnosed instead
OF_THE_SMALLEST = "(of the smallest failing case alone)"
OF_ONE_CASE = "(of this case alone: it does not explain other failures)"


class Explanation(NamedTuple):
    """The causes told for one failure: those that explain it exactly, and those that would show there and do not."""

    causes: tuple[str, ...]
    exact: frozenset[str]
    failed: set[str]
    is_forward: bool


class Explainer:
    """Explains failures of one subject; what the report holds already limits what is spent on the next."""

    def __init__(self, plan: Plan, subject: Subject, report: Report) -> None:
        self.plan, self.subject, self.report = plan, subject, report
        # By case and distribution.
        self._causes: dict[tuple[Case, str], tuple[str, ...]] = {}
        self._explanations: list[Explanation] = []
        self._right: dict[tuple[Case, str], bool] = {}

    @cached_property
    def address(self) -> str:
        """What a command calls the backend."""
        return address_of(self.plan.backend)

    @cached_property
    def device(self) -> str:
        """The device that a command must name; empty if it is the one that it takes anyway."""
        return "" if resolve_device("auto") == self.plan.device else self.plan.device

    def explain(self, failure: Failure, observation: Observation | None = None) -> Failure:
        """The failure with causes, smallest case and command; `observation` is the run that failed, if it came back."""
        if failure.reason.startswith(CRASHED_WORDS):  # to call it again would end another process
            return self.as_it_is(failure)
        # One exception fails every case in the same words: it is explained once.
        by_reason = {f.reason: f for f in self.report.failures if f.command}
        is_new = failure.reason not in by_reason
        shrinks = is_new and sum(f.check == ORACLE for f in by_reason.values()) < MOST_SHRUNK
        causes = failure.causes if is_new else by_reason[failure.reason].causes
        if failure.check in PROPERTIES and failure.tensors and not self._is_right_as_drawn(failure):
            causes = ()  # that the property does not hold follows
        else:
            causes = causes or tuple(guess.words for guess in of_words(failure.reason))
        with self._timed() as left_s:
            smallest = Smallest(failure.case, failure.distribution)
            diagnoses = not causes and len(by_reason) < MOST_DIAGNOSED and (left_s > 0 or not by_reason)
            is_large = failure.check == ORACLE and failure.case.rows * failure.case.k_len > LARGE
            if diagnoses and not is_large:
                # Before any smaller case is run, which may write into the memory of the observed answer.
                causes = self._diagnose(failure, observation)
            if shrinks and left_s and failure.check == ORACLE:
                way = first_words(failure.reason) if observation is None else observation.way_of_failing
                smallest = smallest_failing(self.subject, smallest, way, left_s)
            if diagnoses and not self._exact(causes) and smallest.observation is not None:
                causes = self._of_smallest(causes, smallest.observation)
            elif diagnoses and is_large and not by_reason:
                causes = self._diagnose(failure, None)
        return replace(
            failure, causes=causes, smallest=smallest.case, command=self._command(failure, smallest)
        )

    def _is_right_as_drawn(self, failure: Failure) -> bool:
        """Whether the case of a property is right without what the property does to it."""
        key = failure.case, failure.distribution
        if key not in self._right:
            observation = self._observe(failure)
            self._right[key] = observation is None or observation.verdict.ok
        return self._right[key]

    @contextmanager
    def _timed(self) -> Iterator[float]:
        """Yields the seconds that are left for explanations, 0 if none, and counts those spent inside."""
        steps, start = self.subject.steps, time.monotonic()
        left_s = max(AT_LEAST_S, SHARE * (start - steps.started)) - steps.explaining_s
        try:
            yield max(0.0, left_s)
        finally:
            steps.explaining_s += time.monotonic() - start

    def as_it_is(self, failure: Failure) -> Failure:
        """The failure with its command alone: its cause is known, and a smaller case might show another."""
        command = self._command(failure, Smallest(failure.case, failure.distribution))
        return replace(failure, smallest=failure.case, command=command)

    def _of_smallest(self, causes: tuple[str, ...], smallest: Observation) -> tuple[str, ...]:
        """The causes of the smallest failing case in place of those that explain nothing of the first.

        A few keys leave many causes open: one that would show on the first case, and does not, is dropped.
        """
        failed = next((each.failed for each in self._explanations if each.causes == causes), set())
        of_smallest = self._words(smallest)
        if not causes or not failed:
            return of_smallest if not causes or self._exact(of_smallest) else causes
        kept = (words for words in of_smallest if words in self._exact(of_smallest) and words not in failed)
        return (*(f"{words} {OF_THE_SMALLEST}" for words in kept), *causes)

    def _diagnose(self, failure: Failure, observation: Observation | None) -> tuple[str, ...]:
        key = failure.case, failure.distribution
        if key not in self._causes:
            if observation is None:
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
        plan = self.plan
        again = Again(
            self.address,
            failure.check,
            failure.seed,
            plan.given_contract,
            self.device,
            plan.backend.name,
            plan.declare,
        )
        if failure.check in (ORACLE, PROTOCOL):
            return again.on(smallest.case, smallest.distribution)
        more = options_of(plan.repeats, plan.level) if failure.check in CLAIMS else {}
        return again.on_its_own_cases(
            self.subject.dtype, plan.masks, self.subject.backward, plan.where_text, more
        )

    def _words(self, observation: Observation) -> tuple[str, ...]:
        if observation.verdict.ok:
            return ()
        # Guesses of two kinds may be in the same words: a ragged tile left out is a tail tile and missing keys.
        tried: set[str] = set()
        likely = guesses(self.subject, observation, tried=tried)
        causes = tuple(dict.fromkeys(guess.words for guess in likely))
        exact = frozenset(guess.words for guess in likely if guess.is_exact)
        self._explanations.append(
            Explanation(causes, exact, tried - {*causes}, observation.is_wrong_in_forward)
        )
        return causes

    def _exact(self, causes: tuple[str, ...]) -> frozenset[str]:
        """Those of the causes whose own answer was observed."""
        return next((each.exact for each in self._explanations if each.causes == causes), frozenset())

    def rank_causes(self) -> None:
        """Hold the exact causes of each failure against the other failures: one case alone may leave several open.

        The cause that explains the most failures comes first. One that explains no other failure, though it would show
        there, is dropped if a rival explains another one; without such a rival it is told as a cause of its case alone.
        """
        ranked = {each.causes: self._ranked(each) for each in self._explanations}
        failures = self.report.failures
        failures[:] = [replace(f, causes=ranked.get(f.causes, f.causes)) for f in failures]

    def _ranked(self, diagnosis: Explanation) -> tuple[str, ...]:
        others = [each for each in self._explanations if each.is_forward == diagnosis.is_forward]
        explain = Counter(words for each in others for words in each.exact)
        fail = Counter(words for each in others for words in each.failed)
        exact = [words for words in diagnosis.causes if words in diagnosis.exact]
        alone = {words for words in exact if explain[words] == 1 and fail[words]}
        confirmed = any(explain[words] > 1 for words in exact)
        kept = sorted((words for words in exact if words not in alone), key=lambda words: -explain[words])
        told = () if confirmed else tuple(f"{words} {OF_ONE_CASE}" for words in exact if words in alone)
        first = next((n for n, words in enumerate(diagnosis.causes) if words in exact), len(diagnosis.causes))
        rest = (words for words in diagnosis.causes[first:] if words not in exact)
        return (*diagnosis.causes[:first], *kept, *told, *rest)
