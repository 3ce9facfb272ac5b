"""Properties of gradients: their sums over keys, and their inner products with q, k, v and out."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from attnbench.conformance.properties.property import PropertyFailure, holds
from attnbench.conformance.subject import Subject, allowed_pairs
from attnbench.judge.verdict import LARGEST, MAX_Z


@holds("nearly every fault of a backward")
def gradient_identities(subject: Subject) -> Iterator[PropertyFailure]:
    """Over the keys dk adds up to 0 and dv to the dO of rows that have a key, within the sum of their noise."""
    if not subject.backward:
        return
    for _, case in subject.any_case(q_heads=4):
        inputs = subject.inputs(case)
        answer, reference = subject.answer(inputs), subject.reference(inputs)
        assert answer.gradients is not None
        assert inputs.dout is not None
        some = allowed_pairs(case, subject.device).any(-1)[..., None]  # [B, H, Q, 1]
        dv_sum = (inputs.dout.double() * some).unflatten(1, (case.kv_heads, case.group)).sum((2, 3))
        for name, x, want in (
            ("dk", answer.gradients.dk, 0 * dv_sum[..., :1]),
            ("dv", answer.gradients.dv, dv_sum),
        ):
            expected = reference.expected[name]
            if expected.value.shape != tuple(x.shape):
                continue  # a sample of columns has no sum
            noise = torch.from_numpy(expected.sigma).to(x.device).sum(2)  # errors of a row's keys may agree
            z = ((x.double().sum(2) - want).abs() / noise.clamp_min(1e-300)).nan_to_num(nan=math.inf)
            worst = float(z.max())
            if worst > MAX_Z[subject.contract]:
                at = tuple(int(i) for i in (z == z.max()).nonzero()[0])
                what = "0" if name == "dk" else "the sum of dO"
                reason = f"the sum of {name} over the keys is {worst:.3g} times its noise away from {what}"
                yield PropertyFailure(case, name, at, reason, min(LARGEST, worst / MAX_Z[subject.contract]))


@holds("a scale or a product of one gradient alone, delta, gradients of other heads or rows")
def inner_products_agree(subject: Subject) -> Iterator[PropertyFailure]:
    """Over each key head `<dq, q> = <dk, k>` and `<dv, v> = <dO, o>`, within the noise of both sides.

    Both are the sum over pairs of dS times S before any bias, and of dP times P; so they hold under any mask,
    softcap, bias or sink. Errors of a row may agree (delta is common to it), those of different rows do not.
    """
    if not subject.backward:
        return
    for _, case in subject.any_case(q_heads=4):  # as in gradient_identities: their references are kept
        inputs = subject.inputs(case)
        answer, reference = subject.answer(inputs), subject.reference(inputs)
        gradients, dout = answer.gradients, inputs.dout
        assert gradients is not None
        assert dout is not None
        sides = {
            "dq": (gradients.dq, inputs.q),
            "dk": (gradients.dk, inputs.k),
            "dv": (gradients.dv, inputs.v),
            "out": (answer.output.out, dout),
        }
        if any(reference.expected[name].value.shape != tuple(x.shape) for name, (x, _) in sides.items()):
            continue  # a sample has no sum
        sums = {}
        for name, (x, by) in sides.items():
            sigma = torch.from_numpy(reference.expected[name].sigma).to(x.device)
            sums[name] = _product(x, by, sigma, case.kv_heads)
        for name, other, words in (("dq", "dk", "<dq, q> and <dk, k>"), ("dv", "out", "<dv, v> and <dO, o>")):
            (one, noise), (two, more) = sums[name], sums[other]
            z = ((one - two).abs() / (noise + more).sqrt().clamp_min(1e-300)).nan_to_num(nan=math.inf)
            worst = float(z.max())
            if worst > MAX_Z[subject.contract]:
                at = tuple(int(i) for i in (z == z.max()).nonzero()[0])
                reason = f"{words} are {float(one[at]):.6g} and {float(two[at]):.6g} at key head {at}"
                reason += f", {worst:.3g} times their noise apart"
                yield PropertyFailure(case, name, at, reason, min(LARGEST, worst / MAX_Z[subject.contract]))


def _product(x: Tensor, by: Tensor, sigma: Tensor, kv_heads: int) -> tuple[Tensor, Tensor]:
    """<x, by> of each batch row and key head, [B, Hkv], and the variance of its noise."""
    by = by.double()
    groups = (kv_heads, x.shape[1] // kv_heads)
    total = (x.double() * by).unflatten(1, groups).sum((2, 3, 4))
    rows = (sigma * by.abs()).sum(-1)  # [B, H, S]
    return total, rows.square().unflatten(1, groups).sum((2, 3))
