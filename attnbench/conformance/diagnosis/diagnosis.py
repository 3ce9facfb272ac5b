"""What is the likely bug? Guesses from the pattern of an error, the likeliest first.

Two ways. A bug of meaning (a wrong mask, scale, head) has an exact answer too: that of the changed problem. Each
such change is computed by the oracle, and one that explains what the backend gave is named. A bug of another kind
leaves a pattern: which rows, heads, tiles or columns are off, by a factor or at random, only in gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.causes import Guess, Hypothesis
from attnbench.conformance.diagnosis.gradients import of_gradient
from attnbench.conformance.diagnosis.hypotheses import ALL_ZEROS, of_problem
from attnbench.conformance.diagnosis.patterns import (
    of_backward,
    patterns,
    root_mean_square,
    when_called_again,
)
from attnbench.conformance.subject import Answer, Failed, Refused, Subject
from attnbench.errors import AttnbenchError
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.judge.reference import Reference
from attnbench.judge.rounding import UNITS
from attnbench.judge.verdict import Verdict, judge
from attnbench.problem import Case, Inputs

if TYPE_CHECKING:
    from attnbench.conformance.report import Failure

COSTLIEST = 1 << 20  # scores of a case that is explained: each hypothesis costs one float64 answer of it
# a hypothesis explains an error when it leaves this share of it, in the root of the mean square
EXPLAINS = 0.1
WITHIN = 4.0  # times its noise that an element may be off and count as explained
FAR_LESS = 3  # an error under normal numbers is that much smaller where a distribution tells something
AS_WELL = (
    1.5  # the share that a hypothesis leaves, relative to the best one's, up to which it explains as well
)


def causes_of(subject: Subject, failure: Failure, case: Case, distribution: str) -> tuple[str, ...]:
    """Guesses at why this case fails, the likeliest first; empty where no pattern is known."""
    found = of_words(failure.reason)
    if not found:
        inputs = subject.inputs(case, distribution)
        try:
            found = guesses(subject, inputs, subject.answer(inputs))
        except (Refused, Failed):
            return ()
    return tuple(guess.words for guess in found)


OF_WORDS = {
    "does not require grad": (
        "gradients only",
        "autograd finds no graph behind out; where there is no backward, check the forward alone (--direction fwd)",
    ),
    "raises": (
        "protocol",
        "an exception where the case is not refused; raise NotImplementedError to refuse it",
    ),
    "has shape": (
        "layout",
        "the output's layout or head dim is not [B, H, Q, Dv] (transposed, or v_dim taken for head_dim)",
    ),
    " is torch.": ("protocol", "the result is not cast back to the inputs' dtype"),
    "is missing": (
        "score change",
        "autograd does not reach this tensor (detached, or computed without a graph)",
    ),
    "lies on": ("protocol", "the result is on another device"),
    "may not attend": (
        "mask boundary",
        "the mask lets a forbidden key through (off by one, another alignment, or ignored)",
    ),
    "may attend": (
        "mask boundary",
        "the mask forbids an allowed key (off by one, another alignment, or a skipped tile)",
    ),
    "leak": ("mask leak", "masked keys leak: they enter before the mask, or as 0 times their number"),
}


def of_words(reason: str) -> tuple[Guess, ...]:
    """What the reason of a failure says by itself."""
    return tuple(Guess(*guess) for word, guess in OF_WORDS.items() if word in reason)[:2]


Made = dict[tuple[str, int], "Exact | Tensor | None"]  # answers of hypotheses, by tensor and number


def guesses(subject: Subject, inputs: Inputs, answer: Answer, made: Made | None = None) -> tuple[Guess, ...]:
    """Guesses from what the backend gave for these inputs, the likeliest first; the second is of another kind.

    `made` keeps the answers of hypotheses for other backends on the same inputs.
    """
    verdict = judge(subject.reference(inputs), answer.output, answer.gradients, inputs)
    wrong = set(verdict.wrong)
    found: list[Guess] = []
    for name in wrong:
        found += of_words(verdict.errors[name].reason)
    found += when_called_again(subject, inputs, answer)
    if inputs.case.rows * inputs.case.k_len <= COSTLIEST:
        exact = _likeliest(
            _explained(_Seen(subject.reference(inputs), inputs, answer), wrong, {} if made is None else made)
        )
        # All zeros is what overflow leaves as well, where numbers are extreme; on others it says all there is to say.
        zeros = [guess for guess in exact if guess.words == ALL_ZEROS]
        others = [guess for guess in exact if guess not in zeros]
        extreme = _of_distribution(subject, inputs, verdict, wrong)
        found += [*others, *extreme, *zeros] if extreme else [*zeros, *others]
    else:
        found += _of_distribution(subject, inputs, verdict, wrong)
    found += patterns(subject, inputs, answer, wrong)
    return _of_different_kinds(found)


def _of_different_kinds(found: Iterable[Guess]) -> tuple[Guess, ...]:
    """The first guess of each cause, then the others."""
    unique = list(dict.fromkeys(found))
    first = list({guess.cause: guess for guess in reversed(unique)}.values())
    first.sort(key=unique.index)
    return (*first, *(guess for guess in unique if guess not in first))


def _likeliest(explained: Iterable[tuple[float, Guess]]) -> list[Guess]:
    """By the share of the error they leave; those that do nearly as well as the best in the order they were tried."""
    found = list(explained)
    best = min((share for share, _ in found), default=0.0)
    return [
        guess
        for _, _, guess in sorted(
            (share > AS_WELL * best, n, guess) for n, (share, guess) in enumerate(found)
        )
    ]


class _Seen:
    """What a backend gave on some inputs, beside the noise that each element may have."""

    def __init__(self, reference: Reference, inputs: Inputs, answer: Answer) -> None:
        self.inputs, self.u = inputs, UNITS[inputs.case.dtype]
        self.given = {name: x.double() for name, x in answer.tensors.items() if x is not None}
        if answer.output.lse is not None:
            self.given["lse"] = answer.output.lse.double()
        self.sigma: dict[str, Tensor] = {}
        for name, x in self.given.items():
            sigma = torch.from_numpy(reference.expected[name].sigma).to(x.device)
            # A sample of rows says nothing of the others.
            self.sigma[name] = sigma if sigma.shape == x.shape else torch.zeros_like(x[:1, :1, :1])

    def distance(self, wanted: dict[str, Tensor], sizes: dict[str, float]) -> float:
        """How far another answer is beyond the noise, relative to the size of each tensor; infinities are far."""
        total = 0.0
        for name, size in sizes.items():
            x, y = self.given[name], wanted[name]
            if x.shape != y.shape:
                return math.inf
            finite = x.isfinite() & y.isfinite()
            other = ~finite & ~((x == y) | (x.isnan() & y.isnan()))
            unit = 2.0**-24 if name == "lse" else self.u
            beyond = (x - y).abs() - WITHIN * (self.sigma[name] + unit * y.abs())
            apart = torch.where(finite, beyond.clamp_min(0.0), 0.0).square().mean() / max(size, 1e-30) ** 2
            total += float(apart) + float(other.double().mean())
        return math.sqrt(total)


def _explained(seen: _Seen, wrong: set[str], made: Made) -> Iterator[tuple[float, Guess]]:
    """(share of the error that is left, guess) of each change of the problem that explains the answer."""
    inputs = seen.inputs
    right = exact_attention(inputs)
    if wrong & {"out", "lse"}:
        # A wrong forward spoils every gradient.
        names = [name for name in ("out", "lse") if name in seen.given]
        yield from _left(seen, _forward(right, names), of_problem(inputs), made)
        return
    for name in ("dq", "dk", "dv"):
        exact = getattr(right, name)
        if name in wrong and exact is not None:
            found = list(_left(seen, {name: exact}, of_gradient(name, inputs, right), made))
            yield from found
            if found:
                return


def _forward(exact: Exact, names: Iterable[str]) -> dict[str, Tensor]:
    return {name: getattr(exact, name) for name in names}


def _left(
    seen: _Seen, right: dict[str, Tensor], hypotheses: Iterator[Hypothesis], kept: Made
) -> Iterator[tuple[float, Guess]]:
    sizes = {name: root_mean_square(torch.where(x.isfinite(), x, 0.0)) for name, x in right.items()}
    first = next(iter(right))
    errors = {True: seen.distance(right, sizes), False: seen.distance(right, {first: sizes[first]})}
    for number, (cause, words, make) in enumerate(hypotheses):
        if (first, number) not in kept:
            kept[first, number] = _made(make)
        made = kept[first, number]
        if made is None:
            continue
        # Some faults say what out becomes, and leave the LSE open.
        both = isinstance(made, Exact)
        alternative = _forward(made, sizes) if isinstance(made, Exact) else {first: made}
        looked_at = sizes if both else {first: sizes[first]}
        if errors[both]:
            share = seen.distance(alternative, looked_at) / errors[both]
            if share < EXPLAINS:
                yield share, Guess(cause, words)


def _made(make: Callable[[], Exact | Tensor]) -> Exact | Tensor | None:
    try:
        return make()
    except (AttnbenchError, ValueError, RuntimeError, IndexError):
        return None  # a change that this case does not have


OF_DISTRIBUTION: dict[str, tuple[tuple[str, str], ...]] = {
    "large": (
        ("online softmax", "no maximum is taken off before exp, or not the row's: large scores overflow"),
    ),
    "negative_lse": (
        ("online softmax", "the maximum starts at 0: only a negative LSE shows it"),
        ("tail tile", "a tail of the tile is scored 0: only a negative LSE shows it"),
    ),
    "rising": (("online softmax", "rescaling when a later tile has a larger maximum"),),
    "huge_negative": (
        ("mask leak", "a finite stand-in for -inf, above scores of -5e5"),
        ("low precision", "products kept in half precision"),
    ),
    "near_constant_v": (("low precision", "low precision of an accumulator or row sum"),),
    "sign_flipped_v": (("low precision", "low precision of an accumulator: large sums that cancel"),),
    "sign_flipped_dout": (
        ("low precision", "low precision of dk's or dv's accumulator: large sums that cancel"),
    ),
    "cancelling_dq": (("low precision", "low precision of dq's accumulator: large sums that cancel"),),
    "positive": (("low precision", "low precision of an accumulator or row sum"),),
    "sink_key": (("low precision", "small weights are dropped, or P is kept in few bits"),),
    "subnormal_v": (("low precision", "subnormal numbers are flushed to zero"),),
    "constant_v": (("low precision", "low precision of delta, or of the row sum"),),
    "huge_unseen": (
        ("mask leak", "masked keys leak: they enter before the mask, or as 0 times their number"),
    ),
}


def _of_distribution(subject: Subject, inputs: Inputs, verdict: Verdict, wrong: set[str]) -> list[Guess]:
    """What an error points at that shows under these numbers, and not (or far less) under normal ones."""
    causes = OF_DISTRIBUTION.get(inputs.distribution, ())
    if not causes:
        return []
    try:
        plain = subject.verdict(subject.inputs(inputs.case, "randn"))
    except (Refused, Failed):
        return []
    if FAR_LESS * plain.error_over_budget > verdict.error_over_budget and not plain.ok:
        return []
    backward = [] if wrong & {"out", "lse"} else [of_backward(wrong)]
    return [*backward, *(Guess(*cause) for cause in causes)]
