"""The faults whose own answer is the one observed, those that leave the least of the error first."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.observation import Observation
from attnbench.conformance.diagnosis.patterns import root_mean_square
from attnbench.errors import AttnbenchError
from attnbench.faults.causes import Guess, Hypothesis
from attnbench.faults.forward import of_problem
from attnbench.faults.gradients import of_gradient, of_score_gradient
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.judge.rounding import UNITS
from attnbench.problem import Case

MOST_SCORES = 1 << 20  # that are compared: each hypothesis costs one float64 answer of them
MOST_PAIRS = 1 << 23  # of a case: each other mask is one of them
EXPLAINS = 0.1  # a hypothesis explains an error if at most this share of it is left (root mean square)
AS_WELL = 1.5  # and explains it as well as the best one if it leaves at most this times what that one leaves
ENOUGH = 4  # hypotheses of different words that leave nothing of an error: no further ones are tried
SMALL = 1 << 14  # elements: all hypotheses are tried on an answer as small as this, which leaves many open
MOST_ROWS = 48  # of a wrong forward that are compared, if it has more
WITHIN = 4.0  # an element counts as explained if it is off by at most this times its noise

Made = dict[tuple[str, int], "Exact | Tensor | None"]  # answers of hypotheses, by tensor and number


def explained(
    observation: Observation, made: Made, earlier: Sequence[Case], tried: set[str] | None = None
) -> list[Guess]:
    """Those that explain nearly as well as the best, exact, in the order they were tried; then the others.

    `made` keeps answers of hypotheses for other backends on the same inputs; `earlier` are the cases that this backend
    computed before. The words of all that were tried and differ from the right answer are added to `tried`.
    """
    shares = _shares(observation, made, earlier, set() if tried is None else tried)
    best = min((share for share, _ in shares), default=0.0)
    ranked = sorted((share > AS_WELL * best, n, guess) for n, (share, guess) in enumerate(shares))
    return [guess._replace(is_exact=not is_worse) for is_worse, _, guess in ranked]


class _Answered:
    """The tensors of an answer, of some rows of the forward, and the noise that each element may have."""

    def __init__(self, observation: Observation, right: Exact) -> None:
        self.u = UNITS[observation.case.dtype]
        self.tensors = {name: x.double() for name, x in observation.tensors.items()}
        self.sigma: dict[str, Tensor] = {}
        for name, x in self.tensors.items():
            sigma = torch.from_numpy(observation.reference.expected[name].sigma).to(x.device)
            # Of a sample of rows, the noise of the others is unknown.
            self.sigma[name] = sigma if sigma.shape == x.shape else torch.zeros_like(x[:1, :1, :1])
        self.rows: Tensor | None = None
        out = self.tensors["out"]
        if observation.is_wrong_in_forward and out.shape == right.out.shape and out.shape[2] > MOST_ROWS:
            self.rows = self._rows_to_look_at((out - right.out).nan_to_num(posinf=1e30, neginf=1e30))

    def _rows_to_look_at(self, error: Tensor) -> Tensor:
        """Rows spread over all and at tile edges; the worst ones as well if the error is not among these."""
        by_row = error.abs().amax((0, 1, 3))
        q_len = len(by_row)
        edges = [row for tile in (16, 32, 64, 128, 256) for row in (tile - 1, tile, tile + 1)]
        spread = {n * (q_len - 1) // (MOST_ROWS // 2) for n in range(MOST_ROWS // 2 + 1)}
        rows = {0, 1, q_len - 2, q_len - 1, *edges} | spread
        kept = torch.tensor(sorted(row for row in rows if 0 <= row < q_len), device=by_row.device)
        if 2 * float((by_row[kept] > 0).double().mean()) >= float((by_row > 0).double().mean()):
            return kept
        return torch.cat([kept, by_row.topk(min(MOST_ROWS // 4, q_len)).indices]).unique()

    def of_rows(self, x: Tensor, like: Tensor) -> Tensor:
        """The looked-at rows of a tensor of the forward that has all rows."""
        return x if self.rows is None or x.shape[2:3] != like.shape[2:3] else x[:, :, self.rows]

    def distance(self, wanted: dict[str, Tensor], sizes: dict[str, float]) -> float:
        """How far another answer lies beyond the noise, relative to each tensor's size; a lone infinity counts 1."""
        total = 0.0
        for name, size in sizes.items():
            x, y, sigma = self.tensors[name], wanted[name], self.sigma[name]
            if name in ("out", "lse"):
                y, sigma, x = self.of_rows(y, x), self.of_rows(sigma, x), self.of_rows(x, x)
            if x.shape != y.shape:
                return math.inf
            finite = x.isfinite() & y.isfinite()
            other = ~finite & ~((x == y) | (x.isnan() & y.isnan()))
            unit = 2.0**-24 if name == "lse" else self.u
            beyond = (x - y).abs() - WITHIN * (sigma + unit * y.abs())
            apart = torch.where(finite, beyond.clamp_min(0.0), 0.0).square().mean() / max(size, 1e-30) ** 2
            total += float(apart) + float(other.double().mean())
        return math.sqrt(total)


def _shares(
    observation: Observation, made: Made, earlier: Sequence[Case], tried: set[str]
) -> list[tuple[float, Guess]]:
    """The changes of the problem that explain the answer: the share of the error that each leaves, and the guess."""
    case = observation.case
    rows = min(case.q_len, MOST_ROWS) if observation.is_wrong_in_forward else case.q_len
    if case.rows // case.q_len * rows * case.k_len > MOST_SCORES or case.rows * case.k_len > MOST_PAIRS:
        return []
    right = exact_attention(observation.inputs)
    answered = _Answered(observation, right)
    inputs, allowed = observation.inputs, observation.allowed
    if observation.is_wrong_in_forward:
        # A wrong forward spoils every gradient.
        names = [name for name in ("out", "lse") if name in answered.tensors]
        hypotheses = of_problem(inputs, allowed, right, answered.rows, earlier)
        return list(_left(answered, _forward(right, names), hypotheses, made, tried))
    found: list[tuple[float, Guess]] = []
    for name in ("dq", "dk", "dv"):
        exact = getattr(right, name)
        if name not in observation.wrong or exact is None:
            continue
        of_name = of_gradient(name, inputs, allowed, right)
        if not found:
            found = list(_left(answered, {name: exact}, of_name, made, tried))
            continue
        # A fault that explains every gradient that is wrong comes before one that explains the first alone.
        known = {guess.words for _, guess in found}
        shared = (each for each in of_name if each.words in known)
        also = {guess.words for _, guess in _left(answered, {name: exact}, shared, {}, set())}
        found.sort(key=lambda each: each[1].words not in also)
    for name in sorted(observation.wrong & set(right.scores)) if not found else ():
        found += _left(
            answered, {name: right.scores[name]}, of_score_gradient(name, inputs, allowed, right), made, tried
        )
    return found


def _forward(exact: Exact, names: Iterable[str]) -> dict[str, Tensor]:
    return {name: getattr(exact, name) for name in names}


def _left(
    answered: _Answered,
    right: dict[str, Tensor],
    hypotheses: Iterator[Hypothesis],
    kept: Made,
    tried: set[str],
) -> Iterator[tuple[float, Guess]]:
    """The hypotheses that explain the answer, until a few of different words leave nothing of the error."""
    sizes = {name: root_mean_square(torch.where(x.isfinite(), x, 0.0)) for name, x in right.items()}
    first = next(iter(right))
    errors = {True: answered.distance(right, sizes), False: answered.distance(right, {first: sizes[first]})}
    of_rows = "" if answered.rows is None else str(answered.rows.tolist())
    whole: set[str] = set()
    for number, (cause, words, make) in enumerate(hypotheses):
        key = (f"{first} {of_rows}", number)
        if key not in kept:
            kept[key] = _made(make)
        made = kept[key]
        if made is None:
            continue
        # Some faults determine out alone, and leave the LSE open.
        both = isinstance(made, Exact)
        alternative = _forward(made, sizes) if isinstance(made, Exact) else {first: made}
        looked_at = sizes if both else {first: sizes[first]}
        if errors[both]:
            share = answered.distance(alternative, looked_at) / errors[both]
            tried.add(words)
            if share < EXPLAINS:
                yield share, Guess(cause, words)
            whole |= {words} if share == 0.0 else set()
            if len(whole) == ENOUGH and right[first].numel() > SMALL:
                return


def _made(make: Callable[[], Exact | Tensor]) -> Exact | Tensor | None:
    try:
        return make()
    except (AttnbenchError, ValueError, RuntimeError, IndexError):
        return None  # a change that this case does not have
