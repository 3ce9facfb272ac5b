"""The causes that a diagnosis names for each mutant, on the first trial that kills it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from attnbench.conformance.diagnosis.diagnosis import guesses, of_words
from attnbench.conformance.diagnosis.explained import Made
from attnbench.conformance.diagnosis.observation import observe
from attnbench.conformance.protocol import clocks_watched, protocol_faults
from attnbench.conformance.subject import Failed, Subject
from attnbench.faults.causes import Guess
from attnbench.judge.reference import Reference, make_reference
from attnbench.problem import Inputs
from attnbench.selftest.mutants import Mutant
from attnbench.selftest.trials import TRIALS, Trial

GUESSES_SHOWN = 2  # with a failure
PROTOCOL_TRIAL = "plain"


class Diagnosis(NamedTuple):
    """The right cause of a mutant, and the first two guesses on the first trial that kills it."""

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
    """A diagnosis of each mutant that a trial or the protocol kills, in the order of the kills."""
    left = list(mutants)
    diagnoses: list[Diagnosis] = []
    for trial in trials:
        facing = [m for m in left if m.can_show(trial.case(dtype))]
        if not facing:
            continue
        inputs = trial.inputs(dtype, seed)
        reference = make_reference(inputs, "flash", seed)
        made: Made = {}
        for mutant in facing:
            named = _guesses(mutant, inputs, reference, made)
            if named:
                left.remove(mutant)
                diagnoses.append(Diagnosis(mutant.name, mutant.cause, trial.name, named[:GUESSES_SHOWN]))
        on_event(f"{dtype}: {trial.name}, {len(left)} mutants left")
    trial = next(t for t in TRIALS if t.name == PROTOCOL_TRIAL)
    first, second = trial.inputs(dtype, seed), trial.inputs(dtype, seed + 1)
    references = make_reference(first, "flash", seed), make_reference(second, "flash", seed + 1)
    for mutant in left:
        faults = protocol_faults(mutant.backend(), first, second, *references)
        if faults:
            named = (Guess("protocol", faults[0]),)
            diagnoses.append(Diagnosis(mutant.name, mutant.cause, "protocol", named))
    return diagnoses


def _guesses(mutant: Mutant, inputs: Inputs, reference: Reference, made: Made) -> tuple[Guess, ...]:
    """The guesses about a mutant on these inputs; none if they do not kill it."""
    subject = Subject(mutant.backend(), str(inputs.device), inputs.case.dtype)
    subject.keep(inputs, reference)
    # A mutant may change its inputs, and strides are part of what shows it.
    kept = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    try:
        with clocks_watched():
            observation = observe(subject, inputs)
            return () if observation.verdict.ok else guesses(subject, observation, made)
    except Failed as failure:
        return of_words(str(failure))
    finally:
        for name, tensor in inputs.tensors.items():
            if not tensor.equal(kept[name]):
                tensor.copy_(kept[name])
