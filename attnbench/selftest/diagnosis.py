"""Is the right cause among the first two that a diagnosis names? Each mutant on the first trial that kills it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from attnbench.conformance.diagnosis.causes import Guess
from attnbench.conformance.diagnosis.diagnosis import Made, guesses, of_words
from attnbench.conformance.diagnosis.observation import observe
from attnbench.conformance.protocol import clocks_watched, protocol_faults
from attnbench.conformance.subject import Failed, Subject
from attnbench.judge.reference import Reference, make_reference
from attnbench.problem import Inputs
from attnbench.selftest.mutants import Mutant
from attnbench.selftest.trials import TRIALS, Trial

NAMED = 2  # guesses that a failure shows
PROTOCOL_TRIAL = "plain"


class Diagnosis(NamedTuple):
    """What was named for a mutant on the first trial that kills it: the right cause, and the first two guesses."""

    mutant: str
    cause: str
    trial: str
    guesses: tuple[Guess, ...]

    @property
    def is_right(self) -> bool:
        return self.cause in [guess.cause for guess in self.guesses]


def diagnose_mutants(
    dtype: str,
    mutants: Sequence[Mutant],
    trials: Sequence[Trial] = TRIALS,
    *,
    seed: int = 0,
    on_event: Callable[[str], None] = lambda text: None,
) -> list[Diagnosis]:
    """A diagnosis of each mutant that a trial or the protocol finds, in the order they are found."""
    left = list(mutants)
    found: list[Diagnosis] = []
    for trial in trials:
        facing = [m for m in left if m.can_show(trial.case(dtype))]
        if not facing:
            continue
        inputs = trial.inputs(dtype, seed)
        reference = make_reference(inputs, "flash", seed)
        made: Made = {}
        for mutant in facing:
            named = _named(mutant, inputs, reference, made)
            if named:
                left.remove(mutant)
                found.append(Diagnosis(mutant.name, mutant.cause, trial.name, named[:NAMED]))
        on_event(f"{dtype}: {trial.name}, {len(left)} mutants left")
    trial = next(t for t in TRIALS if t.name == PROTOCOL_TRIAL)
    first, second = trial.inputs(dtype, seed), trial.inputs(dtype, seed + 1)
    references = make_reference(first, "flash", seed), make_reference(second, "flash", seed + 1)
    for mutant in left:
        faults = protocol_faults(mutant.backend(), first, second, *references)
        if faults:
            found.append(Diagnosis(mutant.name, mutant.cause, "protocol", (Guess("protocol", faults[0]),)))
    return found


def _named(mutant: Mutant, given: Inputs, reference: Reference, made: Made) -> tuple[Guess, ...]:
    """The guesses about a mutant on these inputs; none where it is not found on them."""
    subject = Subject(mutant.backend(), str(given.device), given.case.dtype)
    subject.keep(given, reference)
    # A mutant may change its inputs, and strides are part of what shows it.
    kept = {name: tensor.clone() for name, tensor in given.tensors.items()}
    try:
        with clocks_watched():
            observation = observe(subject, given)
            return () if observation.verdict.ok else guesses(subject, observation, made)
    except Failed as failure:
        return of_words(str(failure))
    finally:
        for name, tensor in given.tensors.items():
            if not tensor.equal(kept[name]):
                tensor.copy_(kept[name])
