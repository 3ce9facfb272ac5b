"""One backend under test: its answers on inputs, the references of these, and the cases that it takes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import Backend, Gradients, Output
from attnbench.conformance.battery_factors import Makers, Sizes, masks_for
from attnbench.conformance.limits import without_numbers
from attnbench.conformance.protocol import memory_poisoned
from attnbench.conformance.steps import Crashed, Failed, Record, Steps
from attnbench.errors import CaseError, MaskError, ScoreError, place_of
from attnbench.judge.reference import Reference
from attnbench.judge.reference_files import reference_of
from attnbench.problem import Case, Inputs, make_inputs
from attnbench.problem.inputs import blank_inputs


class Refused(Exception):
    """The backend does not take this case, by declaration or by NotImplementedError; the message says why."""


class Raised(Failed):
    """The backend raised an exception; the message has its type and words."""


@dataclass(frozen=True)
class Answer:
    """The output of a backend for some inputs, and the gradients if its backward ran."""

    output: Output
    gradients: Gradients | None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """out, and dq, dk, dv if there are gradients."""
        named = {"out": self.output.out}
        if self.gradients is not None:
            named |= {"dq": self.gradients.dq, "dk": self.gradients.dk, "dv": self.gradients.dv}
        return named


ReferenceKey = tuple[str, str, str, int]  # contract, case id, distribution, seed
SIZES = {"batch": 2, "q_len": 65, "k_len": 65, "q_heads": 4, "head_dim": 64}
MORE_LENGTHS = ((129, 193), (130, 66))  # fewer queries than keys over several tiles, and more


@dataclass
class Subject:
    """One backend under test on one device.

    `masks` restricts the masks to those of these words (`makers` are they), `where` the cases; `sizes` are those of
    cases that a property draws, `more_lengths` further lengths for properties that ask for masks, `limits` the words
    with which a plain function raises instead of refusing, `facts` what a property tells by a name and does not call
    wrong. Subjects on one device may share `references`. `answers` counts the calls that gave an output, without those
    that ask whether a case is taken.
    """

    backend: Backend
    device: str = "cpu"
    dtype: str = "fp32"
    seed: int = 0
    contract: str = "flash"
    masks: tuple[str, ...] | None = None
    backward: bool = True
    answers: int = 0
    where: Callable[[Case], bool] | None = None
    sizes: dict[str, int] = field(default_factory=lambda: dict(SIZES))
    more_lengths: tuple[tuple[int, int], ...] = MORE_LENGTHS
    limits: set[str] = field(default_factory=set)
    facts: dict[str, str] = field(default_factory=dict)
    references: dict[ReferenceKey, Reference] = field(default_factory=dict, repr=False)
    makers: Makers = field(default_factory=dict)
    steps: Steps = field(default_factory=Steps, repr=False)
    _before: dict[str, Case] = field(default_factory=dict, repr=False)
    _computed: dict[str, bool] = field(default_factory=dict, repr=False)
    _broken: dict[str, str] = field(default_factory=dict, repr=False)
    _refused: dict[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.makers = self.makers or masks_for(self.masks, self.backend.capabilities)

    def answer(self, inputs: Inputs) -> Answer:
        """Run the backend once on poisoned memory; raises Refused or Failed."""
        case = inputs.case
        refusal = self.backend.refuses(case, self.device)
        if refusal is not None:
            raise Refused(refusal.reason)
        try:
            with self.steps.call(case, inputs.distribution), memory_poisoned():
                prepared = self.backend.prepare(case, inputs)
                output = prepared.forward()
                gradients = None
                if inputs.dout is not None:
                    gradients = prepared.backward(inputs.dout)
                prepared.drop_graph()
        except NotImplementedError as error:
            self._computed[case.id] = False
            raise Refused(f"NotImplementedError: {error}") from error
        except Crashed:
            self._computed[case.id] = False
            raise
        except Exception as error:
            first = str(error).splitlines()[0] if str(error) else "no message"
            words = f"raises {type(error).__name__}: {first}{place_of(error)}"
            self._computed[case.id] = False
            raise Raised(words) from error
        if not isinstance(output, Output) or not isinstance(output.out, Tensor):
            raise Failed(
                f"gives a {type(getattr(output, 'out', output)).__name__}, not a tensor [B, H, Q, Dv]"
            )
        self.answers += 1
        self._computed[case.id] = True
        self._before.setdefault(case.id, case)
        return Answer(output, gradients)

    def before(self, case: Case) -> list[Case]:
        """The other cases that the backend computed, in order: it may have kept something of theirs."""
        return [other for other in self._before.values() if other.id != case.id]

    def inputs(self, case: Case, distribution: str = "randn", seed: int | None = None) -> Inputs:
        return make_inputs(case, self.seed if seed is None else seed, self.device, distribution)

    def reference(self, inputs: Inputs) -> Reference:
        """The reference of inputs as drawn (kept), or of inputs that were changed (`seed` -1: made anew)."""
        if inputs.seed < 0:
            return reference_of(inputs, self.contract, 0)
        key = self._key(inputs)
        if key not in self.references:
            # The backend may have written into `inputs`.
            drawn = self.inputs(inputs.case, inputs.distribution, inputs.seed)
            self.references[key] = reference_of(drawn, self.contract, inputs.seed)
        return self.references[key]

    def keep(self, inputs: Inputs, reference: Reference) -> None:
        """Keep a reference that was made elsewhere as that of these inputs."""
        self.references[self._key(inputs)] = reference

    def _key(self, inputs: Inputs) -> ReferenceKey:
        return self.contract, inputs.case.id, inputs.distribution, inputs.seed

    def takes(self, case: Case) -> bool:
        """Whether the backend takes the case; a plain function declares nothing and is called."""
        if self.backend.refuses(case, self.device) is not None:
            return False
        if not isinstance(self.backend, FunctionBackend):
            return True
        return self.computes(case) or (case.id in self._broken and not self.is_limit(self._broken[case.id]))

    def computes(self, case: Case) -> bool:
        """Whether the backend gives an output for the case; it is called unless it refuses or the answer is known."""
        if self.backend.refuses(case, self.device) is not None:
            return False
        if case.id not in self._computed:
            self.learn(self.steps.once(f"takes {case.id}", lambda: self._ask(case)))
        return self._computed.get(case.id, False)

    def has_computed(self, case: Case) -> bool:
        """Whether the backend has given an output for the case in this check."""
        return self._computed.get(case.id, False)

    def _ask(self, case: Case) -> Record:
        """Call the backend on blank inputs, whatever is known of the case."""
        before = self.answers
        refused, broken = {}, {}
        try:
            self.answer(blank_inputs(case, self.device))
        except Refused as refusal:
            refused, broken = {case.id: str(refusal)}, {case.id: ""}
        except Failed as failure:
            broken = {case.id: str(failure)}
        self.answers = before
        computed = {case.id: self._computed[case.id]} if case.id in self._computed else {}
        return {"computed": computed, "refused": refused, "broken": broken, "answers": 0}

    def known(self) -> Record:
        """What is known of the cases: which are computed, refused or broken, and in which words."""
        answers = {"answers": self.answers}
        return {
            "computed": dict(self._computed),
            "refused": dict(self._refused),
            "broken": dict(self._broken),
        } | answers

    def learned(self, before: Record) -> Record:
        """What became known since `before`."""
        now = self.known()
        new = {
            name: {key: value for key, value in now[name].items() if before[name].get(key) != value}
            for name in ("computed", "refused", "broken")
        }
        return new | {"answers": self.answers - before["answers"]}

    def learn(self, record: Record) -> None:
        """Take over what became known in a step."""
        self._computed |= record["computed"]
        self._refused |= record["refused"]
        self._broken |= record["broken"]
        self._broken = {case_id: words for case_id, words in self._broken.items() if words}
        self.answers += record["answers"]

    def computes_now(self, case: Case) -> bool:
        """Whether another call gives an output, whatever the last one did."""
        self._computed.pop(case.id, None)
        return self.computes(case)

    def turned_down(self, case: Case) -> tuple[str, bool]:
        """The words with which the backend turned a case down, and whether an exception said them."""
        refusal = self.backend.refuses(case, self.device)
        if refusal is not None:
            return refusal.reason, False
        if case.id in self._broken:
            return self._broken[case.id], True
        return self._refused.get(case.id, ""), False

    def is_limit(self, words: str) -> bool:
        """Whether a plain function raised these words, numbers aside, at a suspected limit."""
        return without_numbers(words) in self.limits

    def case(self, mask: str = "full", **changes: Any) -> Case | None:
        """A case with the battery's mask of that name, or None if the backend does not take it."""
        values: dict[str, Any] = dict(self.sizes)
        values |= {"dtype": self.dtype, "direction": "fwd_bwd" if self.backward else "fwd"} | changes
        if mask not in self.makers:
            return None
        sizes = Sizes(values["q_len"], values["k_len"], values["batch"], values["q_heads"])
        try:
            case = Case(mask=self.makers[mask](sizes), **values)
        except (CaseError, MaskError, ScoreError):
            return None
        if self.where is not None and not self.where(case):
            return None
        return case if self.takes(case) else None

    def any_case(self, **changes: Any) -> Iterator[tuple[str, Case]]:
        """One case per mask that the backend takes, at the first sizes that it takes; (mask's name, case)."""
        for mask in self.makers:
            tries: tuple[dict[str, Any], ...] = (
                {},
                {"head_dim": 128},
                {"batch": 1},
                {"q_len": 64, "k_len": 64},
                {"q_len": 128, "k_len": 128},
            )
            for other in tries:
                case = self.case(mask, **(other | changes))
                if case is not None:
                    yield mask, case
                    break

    def typical_case(self) -> Case | None:
        """A causal case of four heads if the backend takes one, else one with its first mask; None if it takes none."""
        cases = dict(self.any_case(q_heads=4)) or dict(self.any_case())
        return cases.get("causal") or next(iter(cases.values()), None)


def changed(inputs: Inputs, **tensors: Any) -> Inputs:
    """Inputs with other tensors (or another case), marked as not drawn: their reference is made anew."""
    return replace(inputs, seed=-1, **tensors)


def allowed_pairs(case: Case, device: str = "cpu") -> Tensor:
    """bool [B, H, Q, K]."""
    mask = case.mask.materialize(
        case.batch, case.q_heads, case.q_len, case.k_len, device=torch.device(device)
    )
    return mask.expand(case.batch, case.q_heads, case.q_len, case.k_len)
