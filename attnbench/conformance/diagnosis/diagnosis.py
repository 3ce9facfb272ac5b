"""The likely bugs behind a wrong answer, the likeliest first.

Two ways. Most bugs have an exact answer too: that of a changed problem, or of a kernel with one step wrong. Each such
fault is computed, and those that explain the answer are named (see `explained`). If none does, the error's pattern is
told: which rows, heads, tiles or columns are off, by a factor or at random, only in gradients.
"""

from __future__ import annotations

from collections.abc import Iterable

from attnbench.conformance.diagnosis.explained import Made, explained
from attnbench.conformance.diagnosis.observation import Observation, observe
from attnbench.conformance.diagnosis.patterns import (
    is_slight,
    of_backward,
    patterns,
    when_called_again,
)
from attnbench.conformance.subject import Failed, Refused, Subject
from attnbench.faults.causes import Guess

PLAIN = "randn"
LITTLE = 4.0  # times the budget: more is no matter of few bits
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


def guesses(
    subject: Subject, observation: Observation, made: Made | None = None, tried: set[str] | None = None
) -> tuple[Guess, ...]:
    """Guesses at why this run is wrong, the likeliest first; the second is of another kind.

    `made` holds the answers of hypotheses, to be used again for other backends on the same inputs. The words of those
    that would show here, were they the cause, are added to `tried`.
    """
    tried = set() if tried is None else tried
    said: list[Guess] = []
    for error in observation.verdict.wrong.values():
        said += of_words(error.reason)
    said += when_called_again(subject, observation)
    earlier = subject.before(observation.case)
    of_own: set[str] = set()
    exact = explained(observation, {} if made is None else made, earlier, of_own)
    if exact or observation.inputs.distribution == PLAIN:
        tried |= of_own
    if not exact and observation.inputs.distribution != PLAIN:
        # Extreme numbers may hide what a fault does, such as a wrong mask under values that are all alike.
        plain = _on_plain_numbers(subject, observation)
        if plain is not None and not plain.verdict.ok:
            exact = explained(plain, {}, earlier, tried)
    if exact:
        return _of_different_kinds([*said, *exact])
    return _of_different_kinds([*said, *_of_distribution(subject, observation), *patterns(observation)])


def _on_plain_numbers(subject: Subject, observation: Observation) -> Observation | None:
    try:
        return observe(subject, subject.inputs(observation.case, PLAIN))
    except (Refused, Failed):
        return None


def _of_different_kinds(likely: Iterable[Guess]) -> tuple[Guess, ...]:
    """The first guess of each cause, then the others."""
    unique = list({guess.words: guess for guess in reversed(list(likely))}.values())[::-1]
    first = list({guess.cause: guess for guess in reversed(unique)}.values())
    first.sort(key=unique.index)
    return (*first, *(guess for guess in unique if guess not in first))


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
    plain = _on_plain_numbers(subject, observation)
    if plain is None:
        return []
    # A wrong formula or mask is wrong on all numbers; few bits may show a little on plain ones.
    if not plain.verdict.ok:
        far_less = FAR_LESS * plain.verdict.error_over_budget < observation.verdict.error_over_budget
        if not (far_less and plain.verdict.error_over_budget < LITTLE and is_slight(plain)):
            return []
        causes = tuple(cause for cause in causes if cause[0] == "low precision")
        if not causes:
            return []
    names_backward = bool(observation.wrong) and not observation.is_wrong_in_forward
    backward = [of_backward(observation.wrong)] if names_backward else []
    return [*backward, *(Guess(*cause) for cause in causes)]
