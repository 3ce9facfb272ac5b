"""The criteria that reject an answer: attnbench's, and those of other test suites, on the same numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.backend.interface import Backend, Gradients, Output
from attnbench.conformance.protocol import memory_poisoned
from attnbench.judge.oracle import exact_attention
from attnbench.judge.reference import Reference, make_reference
from attnbench.judge.verdict import judge
from attnbench.problem import Inputs
from attnbench.problem.case import DIRECTIONS
from attnbench.selftest.mutants.right import plain_attention
from attnbench.selftest.trials import Trial

OURS, NO_LSE = "attnbench", "attnbench, no LSE"
CLASSIC = ("allclose 1e-2", "assert_close", "twice the naive error")
CRITERIA = (OURS, NO_LSE, *CLASSIC)


@dataclass(frozen=True)
class TrialAnswer:
    """The output and gradients of a backend on a trial, or the message of the error it raised."""

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


def answer_of(backend: Backend, inputs: Inputs) -> TrialAnswer:
    """Run a backend once, forward and backward, on poisoned memory; an error that it raises is its answer."""
    try:
        with memory_poisoned(), torch.random.fork_rng(devices=[]):
            prepared = backend.prepare(inputs.case, inputs)
            output = prepared.forward()
            return TrialAnswer(output, None if inputs.dout is None else prepared.backward(inputs.dout))
    except Exception as error:  # noqa: BLE001 - a mutant may fail in any way, and that kills it
        return TrialAnswer(error=f"raises {type(error).__name__}: {error}")


class Setting:
    """One trial in one dtype with one seed: the inputs, and references made when first used."""

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
            exact = exact_attention(self.inputs)
            named = {"out": exact.out, "dq": exact.dq, "dk": exact.dk, "dv": exact.dv} | exact.scores
            self._exact = {name: x for name, x in named.items() if x is not None}
        return self._exact

    @property
    def naive_error(self) -> dict[str, float]:
        """The largest error of plain attention in the dtype, per tensor."""
        if self._naive_error is None:
            naive = answer_of(plain_attention("scores"), self.inputs).tensors()
            self._naive_error = {
                name: float((x.double() - self.exact[name]).abs().max()) for name, x in naive.items()
            }
        return self._naive_error

    def alarms(
        self, answer: TrialAnswer, contract: str, wanted: Iterable[str] = CRITERIA
    ) -> dict[tuple[str, str], str]:
        """(criterion, direction) -> its reason to reject the answer; a criterion that accepts it is absent."""
        if answer.output is None:
            return {(c, d): answer.error for c in wanted for d in DIRECTIONS}
        alarms: dict[tuple[str, str], str] = {}
        if OURS in wanted or NO_LSE in wanted:
            verdict = judge(self.reference(contract), answer.output, answer.gradients, self.inputs)
            for direction, judged in (("fwd", ("out", "lse")), ("fwd_bwd", tuple(verdict.errors))):
                for criterion, skipped in ((OURS, ()), (NO_LSE, ("lse",))):
                    bad = [
                        error.reason
                        for name, error in verdict.wrong.items()
                        if name in judged and name not in skipped
                    ]
                    if bad:
                        alarms[criterion, direction] = bad[0]
        for criterion in (c for c in CLASSIC if c in wanted):
            bad = [name for name, x in answer.tensors().items() if not self._passes(criterion, name, x)]
            alarms |= {(criterion, "fwd_bwd"): f"{bad[0]} differs"} if bad else {}
            alarms |= {(criterion, "fwd"): "out differs"} if "out" in bad else {}
        return alarms

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
