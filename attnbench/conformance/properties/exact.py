"""Properties that hold in every bit of every right algorithm: they see a fault of any size, at any length and dtype.

Each says why it has no tolerance. What differs between two calls of one kind anyway is left to the claims.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch

from attnbench.conformance.properties.property import PropertyFailure, differing_bits, holds, judged
from attnbench.conformance.subject import Subject, allowed_pairs, changed

HUGE_UNSEEN = "huge_unseen"  # the distribution with finite huge keys and values where no query attends


@holds("off by one, skipped tiles, unwritten rows, a mask of another batch row or head")
def mask_probe(subject: Subject) -> Iterator[PropertyFailure]:
    """With q = 0 all allowed keys weigh the same; with V a slice of the identity, out > 0 is the mask.

    Exact: out sums terms that are 0 or positive, so no rounding makes an allowed pair 0 or a masked one positive.
    """
    more = ({"q_len": q_len, "k_len": k_len} for q_len, k_len in subject.more_lengths)
    for lengths in ({}, *more):
        for _, case in subject.any_case(**lengths, direction="fwd"):
            inputs = subject.inputs(case)
            allowed = allowed_pairs(case, subject.device)
            q = torch.zeros_like(inputs.q)
            for first in range(0, case.k_len, case.v_dim):
                v = torch.zeros_like(inputs.v)
                here = torch.arange(first, min(first + case.v_dim, case.k_len), device=v.device)
                v[:, :, here, here - first] = 1
                out = subject.answer(changed(inputs, q=q, v=v)).output.out
                wrong = (out[..., : len(here)] > 0) != allowed[..., here]
                if bool(wrong.any()):
                    b, h, i, j = (int(x) for x in wrong.nonzero()[0])
                    may = "may" if bool(allowed[b, h, i, first + j]) else "may not"
                    did = "does" if bool(out[b, h, i, j] > 0) else "does not"
                    count = int(wrong.sum())
                    reason = f"query {i} {may} attend key {first + j}, and {did} ({count} pairs are wrong)"
                    yield PropertyFailure(case, "out", (b, h, i, j), reason)
                    break


@holds("leaks from masked keys, causality, padding")
def masked_keys_do_not_leak(subject: Subject) -> Iterator[PropertyFailure]:
    """Huge finite keys and values that a row may not attend change no bit of the row.

    Exact: their weight is 0 whatever the scores are taken relative to, and a sum with 0 * V added is the same sum.
    """
    huge = 1e3 if subject.dtype == "fp16" else 1e30
    for _, case in subject.any_case(direction="fwd"):
        allowed = allowed_pairs(case, subject.device)
        inputs = subject.inputs(case)
        before = subject.answer(inputs).output.out.clone()
        for i in sorted({0, case.q_len // 2, case.q_len - 1}):
            attended = (
                allowed[:, :, i].unflatten(1, (case.kv_heads, case.group)).any(2)[..., None]
            )  # [B, Hkv, K, 1]
            if bool(attended.all()):
                continue
            k, v = torch.where(attended, inputs.k, huge), torch.where(attended, inputs.v, -huge)
            after = subject.answer(changed(inputs, k=k, v=v)).output.out
            # A key that another head of the group may attend keeps its number.
            yield from differing_bits(
                case,
                {"out": after[:, :, i : i + 1]},
                {"out": before[:, :, i : i + 1]},
                f"masked keys of query {i} leak",
            )


@holds("masks in the backward")
def unseen_keys_get_no_gradient(subject: Subject) -> Iterator[PropertyFailure]:
    """dk and dv of a key that no query may attend are exactly 0, however large the key and its value are.

    Exact: they sum products with P = 0 and with dS = 0 * (dP - delta), all of them finite.
    """
    if not subject.backward:
        return
    for _, case in subject.any_case():
        allowed = allowed_pairs(case, subject.device)
        unseen = ~allowed.unflatten(1, (case.kv_heads, case.group)).any(2).any(2)  # [B, Hkv, K]
        if not bool(unseen.any()):
            continue
        gradients = subject.answer(subject.inputs(case, HUGE_UNSEEN)).gradients
        assert gradients is not None
        for name, x in (("dk", gradients.dk), ("dv", gradients.dv)):
            wrong = (x != 0) & unseen[..., None]
            if bool(wrong.any()):
                at = tuple(int(i) for i in wrong.nonzero()[0])
                reason = f"{name}{list(at)} is {float(x[at])}; no query may attend that key"
                yield PropertyFailure(case, name, at, reason, distribution=HUGE_UNSEEN)


@holds("no maximum taken off, products of elements, wrong row fetched")
def one_hot_retrieval(subject: Subject) -> Iterator[PropertyFailure]:
    """A query that scores 200 at one key and 0 elsewhere gives that key's value, within the noise of the case.

    Not exact: only a softmax relative to the row's exact maximum has the weight 1. Relative to a whole exponent, a
    stale maximum or the LSE, exp is rounded: once in the weight, and once in the sum that divides it.
    """
    case = subject.case("full", q_len=63, k_len=63, direction="fwd") or subject.case(
        "full", q_len=64, k_len=64, direction="fwd"
    )
    if case is None or case.k_len > case.head_dim:
        return
    inputs = subject.inputs(case)
    generator = torch.Generator().manual_seed(subject.seed)
    target = torch.randperm(case.k_len, generator=generator)[: case.q_len].to(subject.device)
    height = math.sqrt(200 / case.softmax_scale)
    q, k = torch.zeros_like(inputs.q), torch.zeros_like(inputs.k)
    keys = torch.arange(case.k_len, device=k.device)
    k[:, :, keys, keys] = height
    q[:, :, torch.arange(len(target), device=q.device), target] = height
    asked = changed(inputs, q=q, k=k)
    answer = subject.answer(asked)
    yield from judged(case, subject.reference(asked), answer, asked, "one key is asked for")


@holds("the scale: missing, twice, of another head dim, cached by shape")
def scale_moves_between_q_and_scale(subject: Subject) -> Iterator[PropertyFailure]:
    """(q / 4, 4 scale) gives the same bits as (q, scale).

    Exact: a power of two commutes with every rounding (of the product, of sqrt(scale), of scale * log2(e)), so the
    scaled scores have the same bits wherever the scale is put.
    """
    if subject.dtype == "fp16":
        return  # q / 4 may be subnormal
    for scale in (None, 0.3):
        for _, case in subject.any_case(direction="fwd", scale=scale):
            moved = replace(case, scale=4 * case.softmax_scale)
            if not subject.takes(moved):
                continue
            inputs = subject.inputs(case)
            before = subject.answer(inputs).output.out.clone()
            after = subject.answer(changed(inputs, case=moved, q=inputs.q / 4)).output.out
            words = "(q / 4, 4 scale) differs from (q, scale)"
            yield from differing_bits(case, {"out": after}, {"out": before}, words)
            break


@holds("intermediates of eight bits, fixed offsets, saturation")
def powers_of_two_pass_through(subject: Subject) -> Iterator[PropertyFailure]:
    """4 V gives 4 out, and with 8 dO: 32 dq, 32 dk and 8 dv, in every bit (not fp16, which has subnormals).

    Exact: P does not depend on V and dO, everything else is linear in them, and a power of two commutes with rounding.
    """
    if subject.dtype == "fp16":
        return
    for _, case in subject.any_case():
        inputs = subject.inputs(case)
        dout = inputs.dout
        before = {name: x.clone() for name, x in subject.answer(inputs).tensors.items()}
        after = subject.answer(
            changed(inputs, v=4 * inputs.v, dout=None if dout is None else 8 * dout)
        ).tensors
        factors = {"out": 4, "dq": 32, "dk": 32, "dv": 8}
        wanted = {name: factors[name] * x for name, x in before.items()}
        yield from differing_bits(case, after, wanted, "4 V and 8 dO")
        break


@holds("sign handling, strides of q and k")
def signs_cancel(subject: Subject) -> Iterator[PropertyFailure]:
    """(-q, -k) gives the same bits of out.

    Exact: (-a)(-b) has the bits of a b, and the products are added up in the same order.
    """
    for _, case in subject.any_case(direction="fwd"):
        inputs = subject.inputs(case)
        before = subject.answer(inputs).output.out.clone()
        after = subject.answer(changed(inputs, q=-inputs.q, k=-inputs.k)).output.out
        yield from differing_bits(case, {"out": after}, {"out": before}, "(-q, -k) differs from (q, k)")
        break
