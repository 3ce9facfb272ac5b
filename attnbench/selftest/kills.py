"""Mutants and right implementations run on the trials: kills and false alarms of each criterion.

The references of a trial are made once for all of them. A mutant is killed in a direction by its first alarm there:
forward means out and LSE, both means everything. `report.selftest` and the command print.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.protocol import clocks_watched, protocol_faults
from attnbench.conformance.subject import Failed, ReferenceKey, Refused, Subject
from attnbench.judge.reference import Reference
from attnbench.problem import Inputs
from attnbench.problem.case import DIRECTIONS
from attnbench.selftest.counts import Tally, record
from attnbench.selftest.criteria import CRITERIA, NO_LSE, OURS, Setting, TrialAnswer, answer_of
from attnbench.selftest.mutants import MUTANTS, Mutant, TiledBackend
from attnbench.selftest.mutants.right import RIGHT, Right
from attnbench.selftest.trials import TRIALS, Trial


def directions_of(mutant: Mutant) -> tuple[str, ...]:
    return ("fwd_bwd",) if mutant.gradients_only else DIRECTIONS


def catalogue(dtype: str, device: str = "cpu") -> list[Mutant]:
    """The mutants that exist in this dtype on this device."""
    return [m for m in MUTANTS.values() if dtype in m.dtypes and device in m.devices]


def kill_mutants(
    dtype: str,
    trials: Sequence[Trial] = TRIALS,
    *,
    seed: int = 0,
    mutants: Sequence[Mutant] | None = None,
    every: bool = False,
    quick: bool = False,
    on_event: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Run mutants on trials, each until every criterion has killed it in every direction.

    An alarm is a kill only if the same criterion accepts the right tiled attention on the same numbers: a criterion
    that rejects everything detects nothing. With `every`, each mutant meets all trials, so that `killers` is complete;
    with `quick`, only mutants that attnbench has not killed yet meet long trials.
    """
    mutants = catalogue(dtype) if mutants is None else mutants
    tally = Tally()
    pairs = {m.name: [(c, d) for c in CRITERIA for d in directions_of(m) if _counts(m, c)] for m in mutants}
    alive = {name: set(judged_by) for name, judged_by in pairs.items()}
    for name, judged_by in pairs.items():
        record(tally.kills, name, dtype, {}, judged_by)
    for trial in trials:
        case = trial.case(dtype)
        ours = {(OURS, direction) for direction in DIRECTIONS}
        missed = {
            name: pending & ours if quick and trial.is_long else pending for name, pending in alive.items()
        }
        facing = [m for m in mutants if m.can_show(case) and (missed[m.name] or every)]
        if not facing:
            continue
        setting = Setting(trial, dtype, seed)
        false_alarms = setting.alarms(answer_of(TiledBackend("right"), setting.inputs), "flash")
        for mutant in facing:
            useful = set(pairs[mutant.name] if every else missed[mutant.name]) - false_alarms.keys()
            if not useful:
                continue
            wanted = {criterion for criterion, _ in useful}
            alarms = setting.alarms(_answer_with_clocks(mutant, setting.inputs), "flash", wanted)
            alarms = {key: why for key, why in alarms.items() if key in useful}
            alive[mutant.name] -= set(alarms)
            record(tally.kills, mutant.name, dtype, alarms, alarms)
            _note_kill(tally, dtype, mutant.name, trial.name, alarms)
        on_event(f"{dtype}: {trial.name}")
    _protocol_kills(tally, dtype, mutants, alive, seed, every)
    _property_kills(tally, dtype, mutants, alive, seed)
    return tally


def _counts(mutant: Mutant, criterion: str) -> bool:
    # An answer wrong in the LSE alone is right without the LSE.
    return mutant.shows_without_lse or criterion != NO_LSE


def _note_kill(tally: Tally, dtype: str, mutant: str, trial: str, alarms: dict[tuple[str, str], str]) -> None:
    why = alarms.get((OURS, "fwd_bwd"))
    if why is not None:
        tally.killers.setdefault(dtype, {}).setdefault(mutant, []).append(trial)
        tally.reasons.setdefault(f"{dtype} | {mutant}", f"{trial}: {why}")


def _answer_with_clocks(mutant: Mutant, inputs: Inputs) -> TrialAnswer:
    # Restore inputs changed in place; `fresh` would lose stride 0 and transposed memory.
    kept = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    with clocks_watched():
        answer = answer_of(mutant.backend(), inputs)
    for name, tensor in inputs.tensors.items():
        if not torch.equal(tensor, kept[name]):
            tensor.copy_(kept[name])
    return answer


PROTOCOL_TRIALS = ("plain", "causal, groups, ragged")


def _protocol_kills(
    tally: Tally,
    dtype: str,
    mutants: Sequence[Mutant],
    alive: dict[str, set[tuple[str, str]]],
    seed: int,
    every: bool,
) -> None:
    for trial in (t for t in TRIALS if t.name in PROTOCOL_TRIALS):
        first, second = Setting(trial, dtype, seed), Setting(trial, dtype, seed + 1)
        references = first.reference("flash"), second.reference("flash")
        for mutant in mutants:
            ours = {(c, d) for c in (OURS, NO_LSE) for d in directions_of(mutant)}
            if not ours & alive[mutant.name] and not (every and mutant.cause == "protocol"):
                continue
            faults = protocol_faults(mutant.backend(), first.inputs, second.inputs, *references)
            if faults:
                alarms = dict.fromkeys(ours, faults[0])
                alive[mutant.name] -= ours
                record(tally.kills, mutant.name, dtype, alarms, alarms)
                _note_kill(tally, dtype, mutant.name, f"protocol: {trial.name}", alarms)


# Of calls that differ in one thing, and of sizes and dtypes that no trial has; a trial is one call.
PROPERTIES_OF_CALLS = (
    "changed_masks_are_read",
    "changed_scales_are_read",
    "changed_scores_are_read",
    "some_gradients_are_those_of_all",
    "unusual_sizes_are_right",
    "mixed_dtypes_are_refused_or_right",
)


def _property_kills(
    tally: Tally, dtype: str, mutants: Sequence[Mutant], alive: dict[str, set[tuple[str, str]]], seed: int
) -> None:
    """Kills of mutants that no trial and no protocol kills; the right tiled attention keeps these properties."""
    references: dict[ReferenceKey, Reference] = {}
    for mutant in mutants:
        ours = {(c, d) for c in (OURS, NO_LSE) for d in directions_of(mutant)}
        names = (mutant.found_by,) if mutant.found_by else PROPERTIES_OF_CALLS
        for name in names if ours & alive[mutant.name] else ():
            subject = Subject(mutant.backend(), "cpu", dtype, seed, references=references)
            why = first_fault(subject, name)
            if why:
                alarms = dict.fromkeys(ours, why)
                alive[mutant.name] -= ours
                record(tally.kills, mutant.name, dtype, alarms, alarms)
                _note_kill(tally, dtype, mutant.name, f"property: {name}", alarms)
                break


def first_fault(subject: Subject, name: str) -> str:
    """The reason of the first failure of a property, empty if it holds or the backend takes no case of it."""
    try:
        return next((failure.reason for failure in PROPERTIES[name].run(subject)), "")
    except Refused:
        return ""
    except Failed as failure:
        return str(failure)


def try_right_ones(
    dtype: str,
    trials: Sequence[Trial] = TRIALS,
    *,
    seeds: Sequence[int] = (0,),
    rights: Sequence[Right] = RIGHT,
    criteria: Sequence[str] = CRITERIA,
    on_event: Callable[[str], None] = lambda text: None,
) -> Tally:
    """Run every right implementation on every trial it takes; count each verdict of each direction."""
    tally = Tally()
    backends = [(right, right.make()) for right in rights]
    for trial in trials:
        for seed in seeds:
            setting = Setting(trial, dtype, seed)
            for right, backend in backends:
                contract = backend.capabilities.contract
                case = setting.inputs.case
                if backend.refuses(case) or right.is_defective(case) or not trial.fits(dtype, contract):
                    continue
                answer = answer_of(backend, setting.inputs)
                if answer.error.startswith("raises NotImplementedError"):
                    continue
                name = f"{right.name} | {trial.name} | seed {seed}"
                alarms = setting.alarms(answer, contract, criteria)
                record(
                    tally.false_alarms, name, dtype, alarms, [(c, d) for c in criteria for d in DIRECTIONS]
                )
                if (OURS, "fwd_bwd") in alarms:
                    tally.reasons[f"{dtype} | {name}"] = alarms[OURS, "fwd_bwd"]
        on_event(f"{dtype}: {trial.name}")
    return tally
