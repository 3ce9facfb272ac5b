"""Faults that show in a gradient alone: a factor, an order, heads that are not summed, or a step of the backward."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.backward_steps import of_steps
from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import TILES
from attnbench.faults.dense_backward import DenseBackward
from attnbench.faults.reads import ignoring_strides
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.problem import Inputs

ONLY, GROUP = "gradients only", "gqa mapping"
LOG2_E = math.log2(math.e)


def of_gradient(name: str, inputs: Inputs, allowed: Tensor, right: Exact) -> Iterator[Hypothesis]:
    """Changes of the backward alone, each with its exact gradient, for name "dq", "dk" or "dv".

    `allowed` are the pairs of the right mask, [B, H, Q, K].
    """
    case = inputs.case
    exact: Tensor = getattr(right, name)
    assert inputs.dout is not None
    yield from _of_factor(name, exact, case.softmax_scale if name != "dv" else 1.0, case.group)
    other = {"dk": right.dv, "dv": right.dk}.get(name)
    if other is not None and other.shape == exact.shape:
        yield Hypothesis("layout", "dk and dv are swapped", lambda: other)
    if not inputs.dout.is_contiguous():
        words = "dO's strides are ignored: it is read as if it were contiguous"
        read = replace(inputs, dout=ignoring_strides(inputs.dout))
        yield Hypothesis("layout", words, lambda: getattr(exact_attention(read), name))
    if name != "dq":
        keys = torch.arange(case.k_len, device=exact.device)[:, None]
        for tile in TILES:
            if tile < case.k_len and case.k_len % tile:
                inside = keys < case.k_len // tile * tile
                words = f"{name} of the last, ragged tile of {tile} keys is never written"
                yield Hypothesis("tail tile", words, partial(torch.mul, exact, inside))
    backward = DenseBackward(inputs, allowed, right)
    if case.group > 1:
        yield from _of_groups(backward, name)
    yield from of_steps(backward, name)


def _of_factor(name: str, exact: Tensor, scale: float, group: int = 1) -> Iterator[Hypothesis]:
    """A gradient that is zero, or off by a factor that a kernel may lose or apply twice."""
    yield Hypothesis(ONLY, f"{name} is all zeros", lambda: torch.zeros_like(exact))
    factors = [
        (-1.0, f"the sign of {name} is wrong"),
        (2.0, f"{name} is twice what it has to be (added twice)"),
        (0.5, f"{name} is half of what it has to be"),
        (LOG2_E, f"{name} is multiplied by log2(e): a derivative of exp2 without ln(2)"),
        (1 / LOG2_E, f"{name} is multiplied by ln(2): the scale of exp2 without log2(e)"),
    ]
    if scale not in (0.0, 1.0):
        factors += [(1 / scale, f"{name} lacks the scale"), (scale, f"{name} has the scale twice")]
        factors += [(1 / scale**2, f"{name} is divided by the scale")]
    for factor, words in factors:
        yield Hypothesis(ONLY, words, partial(torch.mul, exact, factor))
    if group > 1 and name != "dq":
        words = f"{name} of a key head is averaged, not summed, over the group (GQA)"
        yield Hypothesis(GROUP, words, partial(torch.mul, exact, 1 / group))
    if group > 1:
        words = f"{name} is divided by the size of the group (GQA)"
        yield Hypothesis(GROUP, words, partial(torch.mul, exact, 1 / group))
        words = f"{name} is multiplied by the size of the group (GQA)"
        yield Hypothesis(GROUP, words, partial(torch.mul, exact, group))


def _of_groups(backward: DenseBackward, name: str) -> Iterator[Hypothesis]:
    """Wrong heads of a group (GQA)."""
    case, p = backward.case, backward.p
    if name != "dq":
        by_query = backward.by_query_head(name, p, backward.ds(p))
        heads = by_query.unflatten(1, (case.kv_heads, case.group))
        whose = f"{name} of a key head is"
        for at, which in ((-1, "last"), (0, "first")):
            words = f"{whose} that of the {which} query head, not the sum of its group (GQA)"
            yield Hypothesis(GROUP, words, partial(heads.select, 2, at))
        if case.kv_heads > 1:
            tiled = by_query.unflatten(1, (case.group, case.kv_heads)).sum(1)
            words = f"{whose} summed over the query heads of a tiled group, h % kv_heads (GQA mapping)"
            yield Hypothesis(GROUP, words, lambda: tiled)
    if case.kv_heads > 1:
        h = torch.arange(case.q_heads, device=p.device)
        for words, at_heads in (
            ("key heads are tiled, not interleaved, in the backward (GQA mapping)", h % case.kv_heads),
            ("every query head reads key head 0 in the backward (GQA mapping)", h * 0),
        ):
            yield Hypothesis(GROUP, words, partial(backward.with_heads, name, at_heads))


def of_score_gradient(name: str, inputs: Inputs, allowed: Tensor, right: Exact) -> Iterator[Hypothesis]:
    """Changes of dbias, dtable or dsink alone."""
    exact = right.scores[name]
    cause = ONLY if name == "dsink" else "score change"
    for _, words, make in _of_factor(name, exact, inputs.case.softmax_scale):
        yield Hypothesis(cause, words, make)
    if name == "dsink":
        words = "dsink of a head is that of another head"
        yield Hypothesis(cause, words, partial(exact.roll, 1, 0))
    if name != "dbias":
        return
    if exact.shape[2] == exact.shape[3]:
        yield Hypothesis(cause, "dbias is transposed", lambda: exact.transpose(2, 3))
    backward = DenseBackward(inputs, allowed, right)
    ds = backward.p * (backward.dp - backward.delta[..., None])
    shared = [dim for dim in range(4) if exact.shape[dim] == 1 and ds.shape[dim] > 1]
    for dim in shared:
        what = ("batch row", "head", "query", "key")[dim]
        others = [n for n in shared if n != dim]
        part = ds.sum(others, keepdim=True) if others else ds
        for at, which in ((0, "first"), (part.shape[dim] - 1, "last")):
            words = f"dbias is that of the {which} {what} alone, not the sum over those that share the bias"
            yield Hypothesis(cause, words, partial(part.narrow, dim, at, 1))
        words = f"dbias is averaged, not summed, over every {what} that shares the bias"
        yield Hypothesis(cause, words, partial(torch.mul, exact, 1 / part.shape[dim]))
    if len(shared) > 1:
        first = ds
        for dim in shared:
            first = first.narrow(dim, 0, 1)
        words = "dbias is that of the first of those that share the bias, not their sum"
        yield Hypothesis(cause, words, lambda: first)
