"""One run of a backend as a check saw it: inputs, answer, reference and verdict, handed on to the diagnosis.

The diagnosis and the search for a smaller case read an observation; neither runs nor judges the same case again.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from attnbench.conformance.subject import Answer, Subject, allowed_pairs
from attnbench.judge.reference import Reference
from attnbench.judge.verdict import Verdict, judge
from attnbench.problem import Case, Inputs


@dataclass(frozen=True)
class Observation:
    """What a backend answered on some inputs, the reference it was held against, and the verdict.

    The backend may write into `inputs` and into the memory of `answer` when it is called again.
    """

    inputs: Inputs
    answer: Answer
    reference: Reference
    verdict: Verdict

    @property
    def case(self) -> Case:
        return self.inputs.case

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors that came back, by name: out, lse and all gradients."""
        tensors: dict[str, Tensor | None] = {**self.answer.tensors, "lse": self.answer.output.lse}
        if self.answer.gradients is not None:
            tensors |= self.answer.gradients.scores
        return {name: x for name, x in tensors.items() if x is not None and name in self.reference.expected}

    @property
    def wrong(self) -> frozenset[str]:
        """The names of the tensors that are wrong."""
        return frozenset(self.verdict.wrong)

    @property
    def is_wrong_in_forward(self) -> bool:
        return not self.wrong.isdisjoint({"out", "lse"})

    @cached_property
    def allowed(self) -> Tensor:
        """The pairs that the mask allows, bool [B, H, Q, K]."""
        return allowed_pairs(self.case, str(self.inputs.device))

    @property
    def way_of_failing(self) -> str:
        """How the case fails, in a word; empty if no tensor is wrong."""
        if any(error.max_z is None for error in self.verdict.wrong.values()):
            return "form"
        return "forward" if self.is_wrong_in_forward else "backward" if self.wrong else ""


def observe(subject: Subject, inputs: Inputs) -> Observation:
    """Run the backend once and judge its answer; raises Refused or Failed."""
    answer = subject.answer(inputs)
    reference = subject.reference(inputs)
    return Observation(inputs, answer, reference, judge(reference, answer.output, answer.gradients, inputs))
