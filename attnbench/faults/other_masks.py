"""Hypotheses of a wrong mask: a part changed, the whole read wrongly, or used wrongly."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import Dense
from attnbench.faults.leaves import changed_leaf
from attnbench.faults.mask_reads import Change, of_missing_keys, of_table, row_sums_of_all
from attnbench.faults.places import Places, pairs_of
from attnbench.judge.oracle import Exact
from attnbench.problem import Case, Causal, Full, Mask, Padding
from attnbench.problem.masks import And, Not, Or


def of_mask(dense: Dense) -> Iterator[Hypothesis]:
    """Other masks in place of the case's, each with its exact out and LSE."""
    for cause, words, pairs in other_masks(dense):
        yield Hypothesis(cause, words, partial(_under, dense, pairs))
    if not bool(dense.allowed.all()):
        yield from _of_use(dense)


def _under(dense: Dense, pairs: Callable[[], Tensor]) -> Exact:
    return dense.answer(dense.masked(allowed=pairs()))


def other_masks(dense: Dense) -> Iterator[Change]:
    """Cause, words and pairs [B, H, Q, K] of other masks, the more particular ones first."""
    case, allowed = dense.case, dense.allowed
    if isinstance(case.mask, Full):
        triangle = torch.ones_like(allowed).tril(case.k_len - case.q_len)
        yield "mask ignored", "a causal mask is applied, and the case has none", lambda: triangle
    else:
        yield "mask ignored", "the mask is ignored", lambda: torch.ones_like(allowed)
        for number, leaf in enumerate(_leaves(case.mask)):
            for cause, words, pairs in changed_leaf(leaf, case, allowed.device):
                yield cause, words, partial(_with_leaf, case.mask, case, allowed.device, number, pairs)
        yield from _of_combination(case.mask, case, allowed.device)
        yield from of_table(dense)
    yield from of_missing_keys(dense)


def _leaves(mask: Mask) -> list[Mask]:
    if isinstance(mask, And | Or):
        return [*_leaves(mask.left), *_leaves(mask.right)]
    return _leaves(mask.mask) if isinstance(mask, Not) else [mask]


def _with_leaf(
    mask: Mask, case: Case, device: torch.device, number: int, pairs: Callable[[], Tensor]
) -> Tensor:
    """The mask's pairs, with other pairs for leaf `number`, counted from the left."""
    if isinstance(mask, And | Or):
        left = len(_leaves(mask.left))
        a = _with_leaf(mask.left, case, device, number, pairs)
        b = _with_leaf(mask.right, case, device, number - left, pairs)
        return a & b if isinstance(mask, And) else a | b
    if isinstance(mask, Not):
        return ~_with_leaf(mask.mask, case, device, number, pairs)
    return pairs() if number == 0 else pairs_of(mask, case, device)


def _of_use(dense: Dense) -> Iterator[Hypothesis]:
    """The right pairs, used wrongly."""
    allowed = dense.allowed[:, :, dense.rows]
    words = "the mask is applied after the softmax: the row sum is that of all keys"
    yield Hypothesis("mask leak", words, lambda: row_sums_of_all(dense))
    words = "the mask is added as numbers 0 and 1, not as -inf and 0"
    yield Hypothesis("mask leak", words, lambda: dense.answer(dense.s + allowed))
    words = "the mask is added as numbers with 1 where a key is masked, not as -inf"
    yield Hypothesis("mask leak", words, lambda: dense.answer(dense.s + (~allowed).double()))


def _of_combination(mask: Mask, case: Case, device: torch.device) -> Iterator[Change]:
    """The parts of a combined mask put together in another way."""
    if isinstance(mask, And | Or):
        left, right = (partial(pairs_of, part, case, device) for part in (mask.left, mask.right))
        other, sign = ("|", "&") if isinstance(mask, And) else ("&", "|")
        words = f"the two parts of the mask are joined by {other}, not {sign}"
        joined = (lambda: left() | right()) if other == "|" else (lambda: left() & right())
        yield "mask shape", words, joined
        yield "mask ignored", f"the mask is `{mask.left}` alone", left
        yield "mask ignored", f"the mask is `{mask.right}` alone", right
    lengths = next((leaf for leaf in _leaves(mask) if isinstance(leaf, Padding)), None)
    if lengths is not None and len(lengths.lengths) in (1, case.batch):
        places = Places(case, device)
        own = torch.tensor(lengths.lengths, device=device)[:, None, None, None] - case.q_len
        for number, leaf in enumerate(_leaves(mask)):
            if isinstance(leaf, Causal):
                words = "the causal mask is aligned to each batch row's own key length, not to k_len"
                pairs = places.where(places.j <= places.i + own)
                yield "mask alignment", words, partial(_with_leaf, mask, case, device, number, pairs)
    if isinstance(mask, Not):
        yield "mask shape", "the mask is not inverted (~)", partial(pairs_of, mask.mask, case, device)
