"""Hypotheses for a wrong forward: a changed problem (scale, heads, scores, mask) or a fault of a kernel's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.causes import Hypothesis
from attnbench.conformance.diagnosis.dense import Dense
from attnbench.conformance.diagnosis.kernels import of_kernel
from attnbench.conformance.diagnosis.masks import of_mask
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.problem import ALiBi, Inputs, Score, Sink, Softcap

LARGEST_EXPONENT = 88.72  # of exp in float32
ALL_ZEROS = "the output is all zeros"


def of_problem(inputs: Inputs, allowed: Tensor) -> Iterator[Hypothesis]:
    """Changes of the problem, each with its exact out (and LSE), the more particular ones first.

    `allowed` are the pairs of the right mask, [B, H, Q, K].
    """
    case = inputs.case
    forward = replace(inputs, case=replace(case, direction="fwd"), dout=None)
    dense = Dense(forward, allowed)
    right = dense.answer()
    mean = dense.v.mean(2, keepdim=True).expand_as(right.out)
    yield Hypothesis("not attention", ALL_ZEROS, lambda: torch.zeros_like(right.out))
    words = "out is the mean of all V: scores and mask play no part"
    yield Hypothesis("not attention", words, lambda: mean)
    yield Hypothesis("lse", "the LSE is in base 2", lambda: replace(right, lse=right.lse / math.log(2)))
    yield from _of_scale(dense, forward)
    yield from _of_heads(forward)
    yield from _of_scores(dense, forward)
    yield from of_mask(dense)
    yield from of_kernel(dense, right)


def _changed(forward: Inputs, **changes: object) -> Callable[[], Exact]:
    return lambda: exact_attention(replace(forward, **changes))  # type: ignore[arg-type]


def _of_scale(dense: Dense, forward: Inputs) -> Iterator[Hypothesis]:
    case, scale = dense.case, dense.case.softmax_scale

    def scaled(words: str, other: float) -> Hypothesis:
        return Hypothesis("scale", words, _changed(forward, case=replace(forward.case, scale=other)))

    yield scaled("the scale is missing", 1.0)
    yield scaled("the scale is applied twice", scale**2)
    yield scaled("the scale is 1 / D instead of 1 / sqrt(D)", 1 / case.head_dim)
    yield scaled("the sign of the scale is wrong", -scale)
    if case.scale is not None:
        yield scaled("the caller's scale is ignored", case.head_dim**-0.5)
    for power in (64, 128, 256):
        if power > case.head_dim:
            yield scaled(f"the scale is that of the padded head dim {power}", power**-0.5)


def _of_heads(forward: Inputs) -> Iterator[Hypothesis]:
    case, k, v = forward.case, forward.k, forward.v
    if case.group > 1:
        tiled = torch.arange(case.q_heads, device=k.device) % case.kv_heads
        whole = replace(case, kv_heads=case.q_heads)
        words = "key heads are tiled, not interleaved, over query heads (GQA mapping)"
        yield Hypothesis("gqa mapping", words, _changed(forward, case=whole, k=k[:, tiled], v=v[:, tiled]))
    if case.kv_heads > 1:
        first = torch.zeros(case.kv_heads, dtype=torch.int64, device=k.device)
        words = "every query head reads key head 0 (GQA mapping)"
        yield Hypothesis("gqa mapping", words, _changed(forward, k=k[:, first], v=v[:, first]))
    if case.batch > 1:
        rows = _changed(forward, k=k[:1].expand_as(k), v=v[:1].expand_as(v))
        yield Hypothesis("layout", "every batch row reads the keys of batch row 0", rows)
    if case.head_dim == case.v_dim:
        yield Hypothesis("layout", "k and v are swapped", _changed(forward, k=v, v=k))
    for by in (1, -1):
        words = "keys are shifted by one against values"
        yield Hypothesis("layout", words, _changed(forward, k=k.roll(by, 2)))
    words = "out is the mean of V: the scores play no part"
    yield Hypothesis("not attention", words, _changed(forward, q=torch.zeros_like(forward.q)))


def _of_scores(dense: Dense, forward: Inputs) -> Iterator[Hypothesis]:
    case, scale = dense.case, dense.case.softmax_scale
    for score in forward.scores:
        cause = "sink" if isinstance(score, Sink) else "score change"
        with_score = partial(_with_score, forward, score)
        yield Hypothesis(cause, f"{score.kind} is ignored", with_score())
        if isinstance(score, Softcap):
            capped = torch.where(dense.allowed, dense.s, -score.cap)
            words = "softcap is applied after the mask, so that masked keys keep exp(-cap)"
            yield Hypothesis(cause, words, partial(dense.answer, capped))
            overflows = dense.raw.abs() > LARGEST_EXPONENT * score.cap
            words = "softcap's tanh is written with exp, which overflows for scores 89 times the cap"
            s = dense.s.masked_fill(overflows, math.nan)
            yield Hypothesis(cause, words, partial(dense.answer, dense.masked(s)))
        if isinstance(score, ALiBi):
            yield from _of_alibi(dense, with_score)
        tensor = score.tensor
        if tensor is None:
            continue
        for name, dim in (("batch row", 0), ("head", 1 if score.kind == "bias" else 0)):
            if tensor.shape[dim] > 1 and not (name == "batch row" and score.kind != "bias"):
                first = tensor.narrow(dim, 0, 1).expand_as(tensor)
                words = f"every {name} reads the {score.kind} of {name} 0"
                yield Hypothesis(cause, words, with_score(score.bound(first)))
        for factor, how in (
            (scale, "scaled like the scores"),
            (1 / scale if scale else 1.0, "divided by the scale"),
            (-1.0, "negated"),
        ):
            yield Hypothesis(cause, f"{score.kind} is {how}", with_score(score.bound(tensor * factor)))
        if score.kind == "relative":
            words = "the relative bias is that of the opposite offset"
            yield Hypothesis(cause, words, with_score(score.bound(tensor.flip(1))))
        if isinstance(score, Sink):
            for times in (2, 3, 4, 8):
                more = score.bound(tensor.float() + math.log(times))
                words = f"the sink is counted {times} times (once in every split)"
                yield Hypothesis(cause, words, with_score(more))
    if case.q_len > 1:
        i = torch.arange(case.q_len, device=dense.s.device)[:, None] + case.k_len - case.q_len
        diagonal = i == torch.arange(case.k_len, device=dense.s.device)
        words = "1 is added to the scores on the diagonal (a mask of ones and zeros added as a bias)"
        yield dense.if_scores_are("score change", words, lambda: dense.s + diagonal)


def _with_score(forward: Inputs, score: Score, *others: Score) -> Callable[[], Exact]:
    """The answer with others in place of a score."""
    scores: list[Score] = []
    for each in forward.scores:
        scores += others if each is score else (each,)
    return _changed(forward, scores=tuple(scores))


def _of_alibi(dense: Dense, with_score: Callable[..., Callable[[], Exact]]) -> Iterator[Hypothesis]:
    case = dense.case
    slopes = tuple(2.0 ** (-8 * (h + 1) / case.q_heads) for h in range(case.q_heads))
    words = "alibi slopes of a head count that is no power of two"
    yield Hypothesis("score change", words, with_score(ALiBi(slopes)))
    right = next(s for s in case.scores if isinstance(s, ALiBi)).slopes_for(case.q_heads)
    i = torch.arange(case.q_len, device=dense.s.device)[:, None]
    j = torch.arange(case.k_len, device=dense.s.device)
    moved: Tensor = (i + case.k_len - case.q_len - j).abs() - (i - j).abs()
    by_head = torch.tensor(right, dtype=torch.float64, device=dense.s.device)[:, None, None]
    words = "alibi counts distances from the top-left corner"
    yield dense.if_scores_are("score change", words, lambda: dense.s + by_head * moved)
