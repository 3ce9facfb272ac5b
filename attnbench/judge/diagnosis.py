"""What is the likely bug? Guesses from the pattern of an error, the likeliest first.

Two ways. A bug of meaning (a wrong mask, scale, head) has an exact answer too: that of the changed problem. Each
such change is computed by the oracle, and one that explains what the backend gave is named. A bug of another kind
leaves a pattern: which rows, heads, tiles or columns are off, by a factor or at random, only in gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.judge.gradient_hypotheses import of_gradient
from attnbench.judge.hypotheses import ALL_ZEROS, Hypothesis, of_problem
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.judge.patterns import patterns, root_mean_square
from attnbench.judge.subject import Answer, Failed, Refused, Subject
from attnbench.judge.verdict import judge
from attnbench.problem import Case, Inputs

if TYPE_CHECKING:
    from attnbench.judge.report import Failure

COSTLIEST = 1 << 22  # scores of a case that is explained: each hypothesis costs one float64 answer of it
# a hypothesis explains an error when it leaves this share of it, in the root of the mean square
EXPLAINS = 0.1


def causes_of(subject: Subject, failure: Failure, case: Case, distribution: str) -> tuple[str, ...]:
    """Guesses at why this case fails, the likeliest first; empty where no pattern is known."""
    words = _of_words(failure.reason)
    if words:
        return words
    if case.rows * case.k_len > COSTLIEST:
        return ()
    inputs = subject.inputs(case, distribution)
    try:
        answer = subject.answer(inputs)
    except (Refused, Failed):
        return ()
    return guesses(subject, inputs, answer)


def _of_words(reason: str) -> tuple[str, ...]:
    known = {
        "raises": "an exception where the case is not refused; raise NotImplementedError to refuse it",
        "has shape": "the output's layout or head dim is not [B, H, Q, Dv] (transposed, or v_dim taken for head_dim)",
        " is torch.": "the result is not cast back to the inputs' dtype",
        "is missing": "autograd does not reach this tensor (detached, or computed without a graph)",
        "lies on": "the result is on another device",
        "may not attend": "the mask lets a forbidden key through (off by one, another alignment, or ignored)",
        "may attend": "the mask forbids an allowed key (off by one, another alignment, or a skipped tile)",
        "leak": "masked keys leak: they enter before the mask, or as 0 times their number",
    }
    found = [cause for word, cause in known.items() if word in reason]
    return tuple(found[:2])


def guesses(subject: Subject, inputs: Inputs, answer: Answer) -> tuple[str, ...]:
    """Guesses from what the backend gave for these inputs."""
    verdict = judge(subject.reference(inputs), answer.output, answer.gradients, inputs)
    wrong = {name for name, error in verdict.errors.items() if error["over_budget"] > 1}
    first = [cause for _, cause in sorted(_explained(inputs, answer, wrong))]
    # All zeros, or not a number, is what overflow leaves as well: the distribution tells more.
    where = list(_of_distribution(subject, inputs))
    if first and first[0] == ALL_ZEROS:
        where, first = [*where, *first], []
    return tuple(dict.fromkeys([*first, *where, *patterns(subject, inputs, answer, wrong)]))


def _distance(given: dict[str, Tensor], wanted: dict[str, Tensor], sizes: dict[str, float]) -> float:
    """How far two answers are apart, relative to the size of each tensor; other infinities count as far."""
    total = 0.0
    for name, size in sizes.items():
        x, y = given[name], wanted[name]
        if x.shape != y.shape:
            return math.inf
        finite = x.isfinite() & y.isfinite()
        other = ~finite & ~((x == y) | (x.isnan() & y.isnan()))
        apart = torch.where(finite, x - y, 0.0).square().mean() / max(size, 1e-30) ** 2
        total += float(apart) + float(other.double().mean())
    return math.sqrt(total)


def _explained(inputs: Inputs, answer: Answer, wrong: set[str]) -> Iterator[tuple[float, str]]:
    """(share of the error that is left, cause) of each change of the problem that explains the answer."""
    right = exact_attention(inputs)
    given = {name: x.double() for name, x in answer.tensors.items() if x is not None}
    if answer.output.lse is not None:
        given["lse"] = answer.output.lse.double()
    if wrong & {"out", "lse"}:
        # A wrong forward spoils every gradient.
        names: list[str] = [name for name in ("out", "lse") if name in given]
        yield from _left(given, _forward(right, names), of_problem(inputs), names)
        return
    for name in ("dq", "dk", "dv"):
        exact = getattr(right, name)
        if name in wrong and exact is not None:
            found = list(_left(given, {name: exact}, of_gradient(name, inputs, right), [name]))
            yield from found
            if found:
                return


def _forward(exact: Exact, names: list[str]) -> dict[str, Tensor]:
    return {name: getattr(exact, name) for name in names}


def _left(
    given: dict[str, Tensor], right: dict[str, Tensor], hypotheses: Iterator[Hypothesis], names: list[str]
) -> Iterator[tuple[float, str]]:
    sizes = {name: root_mean_square(torch.where(x.isfinite(), x, 0.0)) for name, x in right.items()}
    error = _distance(given, right, sizes)
    for cause, make in hypotheses:
        try:
            made = make()
        except (AttnbenchError, ValueError, RuntimeError, IndexError):
            continue
        alternative = _forward(made, names) if isinstance(made, Exact) else {names[0]: made}
        share = _distance(given, alternative, sizes) / error if error else 1.0
        if share < EXPLAINS:
            yield share, cause


OF_DISTRIBUTION = {
    "large": "no maximum is taken off before exp, or not the row's: large scores overflow",
    "negative_lse": "the maximum starts at 0, or a tail of the tile is scored 0: only a negative LSE shows it",
    "rising": "rescaling when a later tile has a larger maximum",
    "huge_negative": "a finite stand-in for -inf, or products kept in half precision",
    "near_constant_v": "low precision of an accumulator or row sum",
    "sign_flipped_v": "low precision of an accumulator: large sums that cancel",
    "cancelling_dq": "low precision of dq's accumulator: large sums that cancel",
    "positive": "low precision of an accumulator or row sum",
    "sink_key": "small weights are dropped, or P is kept in few bits",
    "subnormal_v": "subnormal numbers are flushed to zero",
    "constant_v": "low precision of delta, or of the row sum",
    "huge_unseen": "masked keys leak: they enter before the mask, or as 0 times their number",
}


def _of_distribution(subject: Subject, inputs: Inputs) -> Iterator[str]:
    """What an error points at that shows under these numbers, and not under normal ones."""
    cause = OF_DISTRIBUTION.get(inputs.distribution)
    if cause is None:
        return
    try:
        plain = subject.verdict(subject.inputs(inputs.case, "randn"))
    except (Refused, Failed):
        return
    if plain.ok:
        yield cause
