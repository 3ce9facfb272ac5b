"""Faults of state: the answer is that of a mask, scale, cap or slopes of an earlier call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import Dense
from attnbench.faults.places import pairs_of
from attnbench.judge.oracle import Exact
from attnbench.problem import ALiBi, Case, Mask

CAUSE = "protocol"
MOST = 40  # earlier masks, scales and caps that are tried


def of_earlier(dense: Dense, earlier: Sequence[Case]) -> Iterator[Hypothesis]:
    """Masks of earlier calls of the same lengths, earlier scales, caps and slopes, in place of the case's own."""
    case = dense.case
    own = _sizes(case)
    masks = {str(other.mask): other.mask for other in earlier if _sizes(other) == own}
    for text, mask in list(masks.items())[:MOST]:
        if mask != case.mask:
            words = f"the mask is that of an earlier call of the same lengths, `{text}` (kept by size)"
            yield Hypothesis(CAUSE, words, partial(_under, dense, mask))
    scales = dict.fromkeys(other.softmax_scale for other in earlier if other.head_dim == case.head_dim)
    for scale in list(scales)[:MOST]:
        if scale != case.softmax_scale:
            words = f"the scale is that of an earlier call, {scale:.4g}"
            yield dense.if_scores_are(CAUSE, words, partial(_scaled, dense, scale))
    caps = dict.fromkeys(cap for other in earlier for cap in _caps(other)) if dense.cap else {}
    for cap in list(caps)[:MOST]:
        if cap != dense.cap:
            words = f"the softcap is that of an earlier call, {cap:g}"
            yield dense.if_scores_are(CAUSE, words, _capped(dense, cap))

    alibi = dense.score("alibi")
    if not isinstance(alibi, ALiBi):
        return
    slopes = [score for other in earlier for score in other.scores if isinstance(score, ALiBi)]
    for score in list(dict.fromkeys(slopes))[:MOST]:
        if score != alibi and (score.slopes is None or len(score.slopes) == case.q_heads):
            words = "the alibi slopes are those of an earlier call"
            yield dense.if_scores_are(CAUSE, words, partial(_sloped, dense, score))


def _sizes(case: Case) -> tuple[int, ...]:
    return case.batch, case.q_heads, case.q_len, case.k_len


def _caps(case: Case) -> list[float]:
    return [score.cap for score in case.scores if score.kind == "softcap"]  # type: ignore[attr-defined]


def _under(dense: Dense, mask: Mask) -> Exact:
    return dense.answer(dense.masked(allowed=pairs_of(mask, dense.case, dense.keys.device)))


def _scaled(dense: Dense, scale: float) -> Tensor:
    return dense.scored(dense.product(scale=scale))


def _capped(dense: Dense, cap: float) -> Callable[[], Tensor]:
    rest = dense.s - dense.capped(dense.raw)
    return lambda: cap * torch.tanh(dense.raw / cap) + rest


def _sloped(dense: Dense, alibi: ALiBi) -> Tensor:
    return dense.scored(alibi=-dense.slopes(alibi) * dense.distances())
