"""Does the judge catch liars and leave the right ones alone? Kill rate and false alarms, beside other criteria.

Mutants and right implementations meet the trials; the references of a trial are made once and shared by all. A
mutant counts as killed in a direction by its first alarm there. Forward means out and LSE, both means everything.
Nothing here prints; `report.selftest` and the command do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.interface import Backend, Gradients, Output
from attnbench.errors import AttnbenchError
from attnbench.judge.mutants import MUTANTS, Mutant, TiledBackend
from attnbench.judge.mutants.right import RIGHT, Right, plain_attention
from attnbench.judge.oracle import exact_attention
from attnbench.judge.protocol import clocks_watched, memory_poisoned, protocol_faults
from attnbench.judge.reference import Reference, make_reference
from attnbench.judge.selftest_diagnosis import Diagnosis
from attnbench.judge.trials import TRIALS, Trial
from attnbench.judge.verdict import judge
from attnbench.problem import Inputs

DTYPES = ("bf16", "fp16", "fp32")
DIRECTIONS = ("fwd", "fwd_bwd")
OURS, NO_LSE = "attnbench", "attnbench, no LSE"
CLASSIC = ("allclose 1e-2", "assert_close", "twice the naive error")
CRITERIA = (OURS, NO_LSE, *CLASSIC)
CALIBRATION_SEEDS = range(
    100
)  # looked at while the judge was made; the false alarms of the full form use others
ANSWERS = ("out", "lse", "dq", "dk", "dv")


@dataclass
class Count:
    """Alarms of one criterion in one dtype and direction: over mutants (kills) or right answers (false alarms)."""

    alarms: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)


Key = tuple[str, str, str]  # criterion, dtype, direction


@dataclass
class Part:
    """What one part of the self-test found; parts of different dtypes and seeds add up.

    kills           (criterion, dtype, direction) -> mutants asked and killed
    false_alarms    the same over verdicts on right answers, each named `implementation | trial | seed`
    killers         dtype -> mutant -> names of the trials on which attnbench kills it
    reasons         of our own false alarms, and of the first kill of each mutant
    diagnoses       dtype -> what was named as the cause of each mutant
    """

    kills: dict[Key, Count] = field(default_factory=dict)
    false_alarms: dict[Key, Count] = field(default_factory=dict)
    killers: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    diagnoses: dict[str, list[Diagnosis]] = field(default_factory=dict)

    def add(self, other: Part) -> None:
        for mine, theirs in ((self.kills, other.kills), (self.false_alarms, other.false_alarms)):
            for key, count in theirs.items():
                here = mine.setdefault(key, Count())
                here.alarms |= count.alarms
                here.asked |= count.asked
        for dtype, found in other.killers.items():
            for name, trials in found.items():
                self.killers.setdefault(dtype, {}).setdefault(name, []).extend(trials)
        self.reasons |= other.reasons
        for dtype, named in other.diagnoses.items():
            self.diagnoses.setdefault(dtype, []).extend(named)


@dataclass(frozen=True)
class Answer:
    """What a backend gave on a trial, or the words of the error it raised."""

    output: Output | None = None
    gradients: Gradients | None = None
    error: str = ""

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor but the LSE, which the classic criteria do not look at."""
        assert self.output is not None
        named = {"out": self.output.out}
        if self.gradients is not None:
            g = self.gradients
            named |= {"dq": g.dq, "dk": g.dk, "dv": g.dv} | g.scores
        return named


def answer_of(backend: Backend, inputs: Inputs) -> Answer:
    """Run a backend once, forward and backward, on poisoned memory; whatever a mutant raises is its answer."""
    try:
        with memory_poisoned(), torch.random.fork_rng(devices=[]):
            prepared = backend.prepare(inputs.case, inputs)
            output = prepared.forward()
            return Answer(output, None if inputs.dout is None else prepared.backward(inputs.dout))
    except Exception as problem:  # noqa: BLE001 - a mutant may fail in any way, and that kills it
        return Answer(error=f"raises {type(problem).__name__}: {problem}")


class Setting:
    """One trial in one dtype with one seed: the inputs and what answers are held against, made when first asked."""

    def __init__(self, trial: Trial, dtype: str, seed: int) -> None:
        self.trial, self.dtype, self.seed = trial, dtype, seed
        self.inputs = trial.inputs(dtype, seed)
        self._references: dict[str, Reference] = {}
        self._exact: dict[str, Tensor] | None = None
        self._naive_error: dict[str, float] | None = None

    def reference(self, contract: str) -> Reference:
        if contract not in self._references:
            self._references[contract] = make_reference(self.inputs, contract, self.seed)
        return self._references[contract]

    @property
    def exact(self) -> dict[str, Tensor]:
        """The exact answer of every element, float64."""
        if self._exact is None:
            found = exact_attention(self.inputs)
            named = {"out": found.out, "dq": found.dq, "dk": found.dk, "dv": found.dv} | found.scores
            self._exact = {name: x for name, x in named.items() if x is not None}
        return self._exact

    @property
    def naive_error(self) -> dict[str, float]:
        """The largest error of plain attention in the dtype, per tensor."""
        if self._naive_error is None:
            given = answer_of(plain_attention("scores"), self.inputs).tensors()
            self._naive_error = {
                name: float((x.double() - self.exact[name]).abs().max()) for name, x in given.items()
            }
        return self._naive_error

    def alarms(
        self, answer: Answer, contract: str, wanted: Iterable[str] = CRITERIA
    ) -> dict[tuple[str, str], str]:
        """(criterion, direction) -> why it finds the answer wrong; criteria that find nothing are absent."""
        if answer.output is None:
            return {(c, d): answer.error for c in wanted for d in DIRECTIONS}
        found: dict[tuple[str, str], str] = {}
        if OURS in wanted or NO_LSE in wanted:
            verdict = judge(self.reference(contract), answer.output, answer.gradients, self.inputs)
            over = {name: e for name, e in verdict.errors.items() if e["over_budget"] > 1}
            for direction, looked_at in (("fwd", ("out", "lse")), ("fwd_bwd", tuple(verdict.errors))):
                for criterion, skipped in ((OURS, ()), (NO_LSE, ("lse",))):
                    bad = [
                        e["reason"] for name, e in over.items() if name in looked_at and name not in skipped
                    ]
                    if bad:
                        found[criterion, direction] = bad[0]
        for criterion in (c for c in CLASSIC if c in wanted):
            bad = [name for name, x in answer.tensors().items() if not self._passes(criterion, name, x)]
            found |= {(criterion, "fwd_bwd"): f"{bad[0]} differs"} if bad else {}
            found |= {(criterion, "fwd"): "out differs"} if "out" in bad else {}
        return found

    def _passes(self, criterion: str, name: str, x: Tensor) -> bool:
        exact = self.exact[name]
        if x is None or x.shape != exact.shape:
            return False
        rounded = exact.to(x.dtype)
        if criterion == "allclose 1e-2":
            return torch.allclose(x.double(), rounded.double(), rtol=1e-2, atol=1e-2)
        if criterion == "assert_close":
            try:
                torch.testing.assert_close(x, rounded)
            except AssertionError:
                return False
            return True
        error = float((x.double() - exact).abs().max())
        # flash-attention's own tests: no more than twice the error of the plain form in the same dtype.
        return error <= 2 * self.naive_error[name] + 1e-5


def _record(
    counts: dict[Key, Count],
    name: str,
    dtype: str,
    alarms: dict[tuple[str, str], str],
    asked: Iterable[tuple[str, str]],
) -> None:
    for criterion, direction in asked:
        count = counts.setdefault((criterion, dtype, direction), Count())
        count.asked.add(name)
        if (criterion, direction) in alarms:
            count.alarms.add(name)


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
) -> Part:
    """Run mutants over trials, each until every criterion has found it in every direction.

    An alarm is a kill only where the same criterion accepts the right tiled attention on the same numbers: whoever
    accuses everybody finds nothing. With `every` each mutant meets all trials, so that `killers` is complete; with
    `quick` long trials are left to the mutants that our own judge has not found yet.
    """
    mutants = catalogue(dtype) if mutants is None else mutants
    part = Part()
    pairs = {m.name: [(c, d) for c in CRITERIA for d in directions_of(m) if _counts(m, c)] for m in mutants}
    alive = {name: set(asked) for name, asked in pairs.items()}
    for name, asked in pairs.items():
        _record(part.kills, name, dtype, {}, asked)
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
        accuses_the_right = setting.alarms(answer_of(TiledBackend("right"), setting.inputs), "flash")
        for mutant in facing:
            useful = set(pairs[mutant.name] if every else missed[mutant.name]) - accuses_the_right.keys()
            if not useful:
                continue
            wanted = {criterion for criterion, _ in useful}
            alarms = setting.alarms(_answer_with_clocks(mutant, setting.inputs), "flash", wanted)
            alarms = {key: why for key, why in alarms.items() if key in useful}
            alive[mutant.name] -= set(alarms)
            _record(part.kills, mutant.name, dtype, alarms, alarms)
            _note_kill(part, dtype, mutant.name, trial.name, alarms)
        on_event(f"{dtype}: {trial.name}")
    _protocol_kills(part, dtype, mutants, alive, seed, every)
    return part


def _counts(mutant: Mutant, criterion: str) -> bool:
    # What is wrong in the LSE alone is right for a backend that gives none.
    return mutant.shows_without_lse or criterion != NO_LSE


def _note_kill(part: Part, dtype: str, mutant: str, trial: str, alarms: dict[tuple[str, str], str]) -> None:
    why = alarms.get((OURS, "fwd_bwd"))
    if why is not None:
        part.killers.setdefault(dtype, {}).setdefault(mutant, []).append(trial)
        part.reasons.setdefault(f"{dtype} | {mutant}", f"{trial}: {why}")


def _answer_with_clocks(mutant: Mutant, inputs: Inputs) -> Answer:
    # What a mutant changes in place is put back: `fresh` would lose stride 0 and transposed memory.
    kept = {name: tensor.clone() for name, tensor in inputs.tensors.items()}
    with clocks_watched():
        answer = answer_of(mutant.backend(), inputs)
    for name, tensor in inputs.tensors.items():
        if not torch.equal(tensor, kept[name]):
            tensor.copy_(kept[name])
    return answer


PROTOCOL_TRIALS = ("plain", "causal, groups, ragged")


def _protocol_kills(
    part: Part,
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
                _record(part.kills, mutant.name, dtype, alarms, alarms)
                _note_kill(part, dtype, mutant.name, f"protocol: {trial.name}", alarms)


def try_right_ones(
    dtype: str,
    trials: Sequence[Trial] = TRIALS,
    *,
    seeds: Sequence[int] = (0,),
    rights: Sequence[Right] = RIGHT,
    criteria: Sequence[str] = CRITERIA,
    on_event: Callable[[str], None] = lambda text: None,
) -> Part:
    """Run every right implementation on every trial it takes; each verdict of each direction is counted."""
    part = Part()
    backends = [(right, right.make()) for right in rights]
    for trial in trials:
        for seed in seeds:
            setting = Setting(trial, dtype, seed)
            for right, backend in backends:
                contract = backend.capabilities.contract
                case = setting.inputs.case
                if backend.refuses(case) or right.defect(case) or not trial.fits(dtype, contract):
                    continue
                answer = answer_of(backend, setting.inputs)
                if answer.error.startswith("raises NotImplementedError"):
                    continue
                name = f"{right.name} | {trial.name} | seed {seed}"
                alarms = setting.alarms(answer, contract, criteria)
                _record(
                    part.false_alarms, name, dtype, alarms, [(c, d) for c in criteria for d in DIRECTIONS]
                )
                if (OURS, "fwd_bwd") in alarms:
                    part.reasons[f"{dtype} | {name}"] = alarms[OURS, "fwd_bwd"]
        on_event(f"{dtype}: {trial.name}")
    return part


def interval(alarms: int, asked: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's interval of a rate."""
    from scipy.stats import binomtest

    if asked == 0:
        raise AttnbenchError(
            "a rate over nothing has no interval; run at least one mutant or right implementation"
        )
    found = binomtest(alarms, asked).proportion_ci(confidence, method="exact")
    return float(found.low), float(found.high)


def table(part: Part) -> list[dict[str, Any]]:
    """One row a (criterion, dtype, direction): counts, rates and their intervals."""
    rows = []
    order = lambda key: (CRITERIA.index(key[0]), DTYPES.index(key[1]), DIRECTIONS.index(key[2]))  # noqa: E731
    for key in sorted(part.kills.keys() | part.false_alarms.keys(), key=order):
        row: dict[str, Any] = dict(zip(("criterion", "dtype", "direction"), key, strict=True))
        for what, counts in (("kills", part.kills), ("false_alarms", part.false_alarms)):
            count = counts.get(key)
            if count is None or not count.asked:
                continue
            low, high = interval(len(count.alarms), len(count.asked))
            row |= {
                what: len(count.alarms),
                f"{what}_of": len(count.asked),
                f"{what}_low": low,
                f"{what}_high": high,
            }
        rows.append(row)
    return rows


def survivors(part: Part, criterion: str = OURS) -> dict[str, list[str]]:
    """dtype -> the mutants that this criterion does not find with a backward."""
    return {
        dtype: sorted(count.asked - count.alarms)
        for (c, dtype, direction), count in part.kills.items()
        if c == criterion and direction == "fwd_bwd" and count.asked - count.alarms
    }


def only_killers(part: Part, dtype: str) -> dict[str, list[str]]:
    """trial -> the mutants that it alone kills in this dtype; meaningful where every mutant met every trial."""
    found: dict[str, list[str]] = {}
    for name, trials in sorted(part.killers.get(dtype, {}).items()):
        if len(set(trials)) == 1:
            found.setdefault(trials[0], []).append(name)
    return dict(sorted(found.items()))
