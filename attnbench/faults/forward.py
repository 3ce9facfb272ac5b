"""Hypotheses for a wrong forward: another scale, other reads, scores or masks, or a fault of a kernel's step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import TILES, Dense
from attnbench.faults.earlier import of_earlier
from attnbench.faults.few_bits import of_rounding
from attnbench.faults.other_masks import of_mask
from attnbench.faults.reads import of_reads
from attnbench.faults.score_forms import of_terms
from attnbench.faults.tiles import of_kernel
from attnbench.judge.oracle import Exact, log_sum_exp
from attnbench.problem import Case, Inputs

ALL_ZEROS = "the output is all zeros"
LOG2_E = math.log2(math.e)


def of_problem(
    inputs: Inputs, allowed: Tensor, whole: Exact, rows: Tensor | None = None, earlier: Sequence[Case] = ()
) -> Iterator[Hypothesis]:
    """Changes of the problem, each with its exact out (and LSE), the more particular ones first.

    `allowed` are the pairs of the right mask, [B, H, Q, K], and `whole` the right answer. With `rows` int64 [R] an
    answer has these rows alone, or all. `earlier` are the cases that the backend computed before.
    """
    dense = Dense(inputs, allowed, rows)
    right = dense.answer()
    mean = dense.v.mean(2, keepdim=True).expand_as(right.out)
    yield Hypothesis("not attention", ALL_ZEROS, lambda: torch.zeros_like(right.out))
    words = "out is the mean of all V: scores and mask play no part"
    yield Hypothesis("not attention", words, lambda: mean)
    yield Hypothesis("lse", "the LSE is in base 2", lambda: Exact(right.out, right.lse * LOG2_E))
    yield Hypothesis(
        "lse",
        "the LSE lacks the row's maximum",
        lambda: Exact(right.out, right.lse - dense.masked().amax(-1)),
    )
    if not bool(allowed.all()):
        words = "the LSE is that of all keys, masked ones as well"
        yield Hypothesis("lse", words, lambda: Exact(right.out, log_sum_exp(dense.s, dense.sink)[1]))
    yield from _of_scale(dense)
    yield from of_reads(dense, whole)
    yield from of_terms(dense)
    yield from of_mask(dense)
    yield from of_kernel(dense)
    yield from of_rounding(dense)
    yield from of_earlier(dense, earlier)


def _of_scale(dense: Dense) -> Iterator[Hypothesis]:
    case, scale = dense.case, dense.case.softmax_scale

    def scaled(words: str, other: float) -> Hypothesis:
        return dense.if_scores_are("scale", words, lambda: dense.scored(dense.product(scale=other)))

    yield scaled("the scale is missing", 1.0)
    yield scaled("the scale is applied twice", scale**2)
    yield scaled("the scale is 1 / D instead of 1 / sqrt(D)", 1 / case.head_dim)
    yield scaled("the sign of the scale is wrong", -scale)
    if case.scale is not None:
        words = "the caller's scale is ignored"
        words += ": 0 is taken for `not given`" if scale == 0 else ""
        yield scaled(words, case.head_dim**-0.5)
    if case.v_dim != case.head_dim:
        yield scaled("the scale is that of v_dim, not head_dim", case.v_dim**-0.5)
    for heads, what in ((case.q_heads, "H * D"), (case.kv_heads, "Hkv * D")):
        if heads > 1:
            words = f"the scale is 1 / sqrt({what}), of all heads together"
            yield scaled(words, (heads * case.head_dim) ** -0.5)
    for power in (64, 128, 256):
        if power > case.head_dim:
            yield scaled(f"the scale is that of the padded head dim {power}", power**-0.5)
    yield scaled("the scale is sqrt(scale): applied to one of q and k, as if to both", math.sqrt(abs(scale)))
    if case.k_len != case.head_dim:
        yield scaled("the scale is 1 / sqrt(k_len)", case.k_len**-0.5)
    for words, times in (
        ("the softmax is in base 2: exp2 without log2(e)", 1 / LOG2_E),
        ("scores are multiplied by log2(e), and exp is not exp2", LOG2_E),
    ):
        sink = None if dense.sink is None else dense.sink * times
        other: Callable[[], Exact] = partial(_times, dense, times, sink)
        yield Hypothesis("scale", words, other)
        if sink is not None:
            yield Hypothesis("scale", words, partial(_times, dense, times, None))
    for words, times in (("twice", 2.0), ("half", 0.5)):
        yield scaled(f"scores are {words} what they have to be", scale * times)
    yield from _of_partial_scale(dense)


def _of_partial_scale(dense: Dense) -> Iterator[Hypothesis]:
    """The scale on a part of the scores alone: of keys, queries, heads or features."""
    case, scale = dense.case, dense.case.softmax_scale

    def only(what: str, part: Tensor) -> Hypothesis:
        factor = torch.where(part, scale, 1.0)
        words = f"only {what} scaled: the other scores lack the scale"
        return dense.if_scores_are("scale", words, lambda: dense.scored(dense.product(scale=1.0) * factor))

    for tile in TILES:
        if tile < case.k_len:
            yield only(f"the first {tile} keys are", dense.keys < tile)
            yield only(f"keys after the first {tile} are", dense.keys >= tile)
            if case.k_len % tile:
                yield only(f"keys of whole tiles of {tile} are", dense.keys < case.k_len // tile * tile)
        if tile < case.q_len:
            yield only(f"the first {tile} queries are", dense.rows[:, None] < tile)
            if case.q_len % tile:
                whole = dense.rows[:, None] < case.q_len // tile * tile
                yield only(f"queries of whole tiles of {tile} are", whole)
    heads = torch.arange(case.q_heads, device=dense.keys.device)[:, None, None]
    if case.q_heads > 1:
        yield only("head 0 is", heads == 0)
    if case.kv_heads > 1 and case.group > 1:
        yield only("the first query head of each group is", heads % case.group == 0)
    for lanes in sorted({*TILES, case.head_dim // 2}):
        if 0 < lanes < case.head_dim:
            factor = torch.where(torch.arange(case.head_dim, device=dense.q.device) < lanes, scale, 1.0)
            words = f"only the first {lanes} features are scaled"
            other: Callable[[], Tensor] = partial(_with_scaled_features, dense, factor)
            yield dense.if_scores_are("scale", words, other)


def _with_scaled_features(dense: Dense, factor: Tensor) -> Tensor:
    return dense.scored(dense.product(dense.q * factor, scale=1.0))


def _times(dense: Dense, times: float, sink: Tensor | None) -> Exact:
    return dense.answer(dense.masked(dense.s * times), sink=sink)
