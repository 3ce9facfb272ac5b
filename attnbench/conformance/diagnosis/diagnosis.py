"""The likely bugs behind a wrong answer, the likeliest first.

Two ways. A bug of meaning (a wrong mask, scale, head) has an exact answer too: that of the changed problem. The oracle
computes each such change, and one that explains the answer is named. A bug of another kind leaves a pattern: which
rows, heads, tiles or columns are off, by a factor or at random, only in gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.causes import Guess, Hypothesis
from attnbench.conformance.diagnosis.gradients import of_gradient
from attnbench.conformance.diagnosis.hypotheses import ALL_ZEROS, of_problem
from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.diagnosis.patterns import (
    of_backward,
    patterns,
    root_mean_square,
    when_called_again,
)
from attnbench.conformance.subject import Failed, Refused, Subject
from attnbench.errors import AttnbenchError
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.judge.rounding import UNITS

MOST_SCORES = 1 << 20  # per case: each hypothesis costs one float64 answer of it
EXPLAINS = 0.1  # a hypothesis explains an error if at most this share of it is left (root mean square)
AS_WELL = 1.5  # and explains it as well as the best one if it leaves at most this times what that one leaves
WITHIN = 4.0  # an element counts as explained if it is off by at most this times its noise
FAR_LESS = 3  # a distribution shows a bug if normal numbers give an error at least this many times smaller


OF_WORDS = {
    "does not require grad": (
        "gradients only",
        "autograd finds no graph behind out; if there is no backward, check the forward alone (--direction fwd)",
    ),
    "raises": (
        "protocol",
        "an exception on a case that is not refused; raise NotImplementedError to refuse it",
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
    """Guesses from the words of a failure's reason."""
    return tuple(Guess(*guess) for word, guess in OF_WORDS.items() if word in reason)[:2]


Made = dict[tuple[str, int], "Exact | Tensor | None"]  # answers of hypotheses, by tensor and number


def guesses(subject: Subject, observation: Observation, made: Made | None = None) -> tuple[Guess, ...]:
    """Guesses at why this run is wrong, the likeliest first; the second is of another kind.

    `made` holds the answers of hypotheses, to be used again for other backends on the same inputs.
    """
    likely: list[Guess] = []
    for error in observation.verdict.wrong.values():
        likely += of_words(error.reason)
    likely += when_called_again(subject, observation)
    if observation.case.rows * observation.case.k_len <= MOST_SCORES:
        exact = _likeliest(_explained(observation, {} if made is None else made))
        # Extreme numbers give all zeros by overflow, too; on other numbers all zeros is the whole finding.
        zeros = [guess for guess in exact if guess.words == ALL_ZEROS]
        others = [guess for guess in exact if guess not in zeros]
        extreme = _of_distribution(subject, observation)
        likely += [*others, *extreme, *zeros] if extreme else [*zeros, *others]
    else:
        likely += _of_distribution(subject, observation)
    likely += patterns(observation)
    return _of_different_kinds(likely)


def _of_different_kinds(likely: Iterable[Guess]) -> tuple[Guess, ...]:
    """The first guess of each cause, then the others."""
    unique = list(dict.fromkeys(likely))
    first = list({guess.cause: guess for guess in reversed(unique)}.values())
    first.sort(key=unique.index)
    return (*first, *(guess for guess in unique if guess not in first))


def _likeliest(explained: Iterable[tuple[float, Guess]]) -> list[Guess]:
    """Those that explain nearly as well as the best in the order they were tried, then the others in that order."""
    shares = list(explained)
    best = min((share for share, _ in shares), default=0.0)
    return [
        guess
        for _, _, guess in sorted(
            (share > AS_WELL * best, n, guess) for n, (share, guess) in enumerate(shares)
        )
    ]


class _Answered:
    """The tensors of an answer, and the noise that each element may have."""

    def __init__(self, observation: Observation) -> None:
        self.u = UNITS[observation.case.dtype]
        self.tensors = {name: x.double() for name, x in observation.answer.tensors.items() if x is not None}
        if observation.answer.output.lse is not None:
            self.tensors["lse"] = observation.answer.output.lse.double()
        self.sigma: dict[str, Tensor] = {}
        for name, x in self.tensors.items():
            sigma = torch.from_numpy(observation.reference.expected[name].sigma).to(x.device)
            # Of a sample of rows, the noise of the others is unknown.
            self.sigma[name] = sigma if sigma.shape == x.shape else torch.zeros_like(x[:1, :1, :1])

    def distance(self, wanted: dict[str, Tensor], sizes: dict[str, float]) -> float:
        """How far another answer lies beyond the noise, relative to each tensor's size; a lone infinity counts 1."""
        total = 0.0
        for name, size in sizes.items():
            x, y = self.tensors[name], wanted[name]
            if x.shape != y.shape:
                return math.inf
            finite = x.isfinite() & y.isfinite()
            other = ~finite & ~((x == y) | (x.isnan() & y.isnan()))
            unit = 2.0**-24 if name == "lse" else self.u
            beyond = (x - y).abs() - WITHIN * (self.sigma[name] + unit * y.abs())
            apart = torch.where(finite, beyond.clamp_min(0.0), 0.0).square().mean() / max(size, 1e-30) ** 2
            total += float(apart) + float(other.double().mean())
        return math.sqrt(total)


def _explained(observation: Observation, made: Made) -> Iterator[tuple[float, Guess]]:
    """The changes of the problem that explain the answer: the share of the error that each leaves, and the guess."""
    answered, right = _Answered(observation), exact_attention(observation.inputs)
    if observation.is_wrong_in_forward:
        # A wrong forward spoils every gradient.
        names = [name for name in ("out", "lse") if name in answered.tensors]
        yield from _left(
            answered, _forward(right, names), of_problem(observation.inputs, observation.allowed), made
        )
        return
    for name in ("dq", "dk", "dv"):
        exact = getattr(right, name)
        if name in observation.wrong and exact is not None:
            of_backward_alone = of_gradient(name, observation.inputs, observation.allowed, right)
            explained = list(_left(answered, {name: exact}, of_backward_alone, made))
            yield from explained
            if explained:
                return


def _forward(exact: Exact, names: Iterable[str]) -> dict[str, Tensor]:
    return {name: getattr(exact, name) for name in names}


def _left(
    answered: _Answered, right: dict[str, Tensor], hypotheses: Iterator[Hypothesis], kept: Made
) -> Iterator[tuple[float, Guess]]:
    sizes = {name: root_mean_square(torch.where(x.isfinite(), x, 0.0)) for name, x in right.items()}
    first = next(iter(right))
    errors = {True: answered.distance(right, sizes), False: answered.distance(right, {first: sizes[first]})}
    for number, (cause, words, make) in enumerate(hypotheses):
        if (first, number) not in kept:
            kept[first, number] = _made(make)
        made = kept[first, number]
        if made is None:
            continue
        # Some faults determine out alone, and leave the LSE open.
        both = isinstance(made, Exact)
        alternative = _forward(made, sizes) if isinstance(made, Exact) else {first: made}
        looked_at = sizes if both else {first: sizes[first]}
        if errors[both]:
            share = answered.distance(alternative, looked_at) / errors[both]
            if share < EXPLAINS:
                yield share, Guess(cause, words)


def _made(make: Callable[[], Exact | Tensor]) -> Exact | Tensor | None:
    try:
        return make()
    except (AttnbenchError, ValueError, RuntimeError, IndexError):
        return None  # a change that this case does not have


# A wrong forward under inputs that are drawn for the backward.
OF_FORWARD = {
    "cancelling_dq": (("low precision", "low precision of an accumulator: large sums that cancel"),)
}
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


def _of_distribution(subject: Subject, observation: Observation) -> list[Guess]:
    """Guesses from the distribution, if the error does not show under normal numbers, or far less."""
    name = observation.inputs.distribution
    causes = OF_DISTRIBUTION.get(name, ())
    if observation.is_wrong_in_forward:
        causes = OF_FORWARD.get(name, causes)
    if not causes:
        return []
    try:
        plain = observe(subject, subject.inputs(observation.case, "randn")).verdict
    except (Refused, Failed):
        return []
    if FAR_LESS * plain.error_over_budget > observation.verdict.error_over_budget and not plain.ok:
        return []
    backward = [] if observation.is_wrong_in_forward else [of_backward(observation.wrong)]
    return [*backward, *(Guess(*cause) for cause in causes)]
