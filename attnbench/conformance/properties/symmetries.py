"""Symmetries of attention, which hold within the noise: another computation of the same answer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.backend.interface import Gradients, Output
from attnbench.conformance.properties.property import PropertyFailure, holds, judged
from attnbench.conformance.subject import Answer, Refused, Subject, allowed_pairs, changed
from attnbench.judge.verdict import LARGEST, MAX_Z
from attnbench.problem import Explicit


@holds("assumptions about strides, above all dO's (torch's sum gives a dO of stride 0)")
def strides_make_no_difference(subject: Subject) -> Iterator[PropertyFailure]:
    """dO expanded from one number or transposed, and q, k, v with gaps or in other layouts, give the right answer."""
    case = next((case for _, case in subject.any_case()), None)
    if case is None:
        return
    inputs = subject.inputs(case)
    if inputs.dout is not None:
        expanded = changed(inputs, dout=torch.ones_like(inputs.dout[:1, :1, :1, :1]).expand_as(inputs.dout))
        yield from judged(
            case, subject.reference(expanded), subject.answer(expanded), expanded, "dO of stride 0"
        )
        transposed = changed(inputs, dout=inputs.dout.transpose(1, 2).contiguous().transpose(1, 2))
        text = "dO laid out as [B, S, H, D]"
        yield from judged(case, subject.reference(inputs), subject.answer(transposed), inputs, text)
    apart = {
        name: torch.stack((x, -x), 3).flatten(2, 3)[:, :, ::2]
        for name, x in (("q", inputs.q), ("k", inputs.k))
    }
    strided = changed(inputs, **apart, v=torch.cat((inputs.v, -inputs.v), -1)[..., : case.v_dim])
    yield from judged(
        case, subject.reference(inputs), subject.answer(strided), inputs, "q, k, v with gaps between rows"
    )
    # k and v in different layouts: a kernel that has one set of strides for both reads one of them wrongly.
    for name in ("k", "v"):
        transposed = (
            getattr(inputs, name).transpose(1, 2).contiguous().transpose(1, 2)
        )  # [B, H, S, D] in [B, S, H, D]
        alone = changed(inputs, **{name: transposed})
        text = f"{name} alone laid out as [B, S, H, D]"
        causes = (f"{name}'s strides: it is read by those of another tensor, or as if it were contiguous",)
        yield from judged(case, subject.reference(inputs), subject.answer(alone), inputs, text, causes)


@holds("head mapping of grouped queries")
def grouped_heads_equal_repeated_keys(subject: Subject) -> Iterator[PropertyFailure]:
    """Grouped queries give the same answer as keys and values repeated per query head."""
    for mask in ("causal", "full"):
        case = subject.case(mask, q_heads=6, kv_heads=2)
        if case is None:
            continue
        inputs = subject.inputs(case)
        answer = subject.answer(inputs)
        whole = replace(case, kv_heads=6, direction="fwd")
        k, v = (x.repeat_interleave(3, 1) for x in (inputs.k, inputs.v))
        repeated = changed(inputs, case=whole, k=k, v=v, dout=None)
        plain = Answer(answer.output, None)
        yield from judged(case, subject.reference(repeated), plain, repeated, "compared with repeated keys")
        return


@holds("alignment of the causal mask in decoding")
def decode_equals_the_last_row(subject: Subject) -> Iterator[PropertyFailure]:
    """One query against all keys gives the last row of the whole sequence."""
    whole = subject.case("causal", direction="fwd")
    if whole is None:
        return
    one = replace(whole, q_len=1)
    if not subject.takes(one):
        return
    inputs = subject.inputs(whole)
    last = changed(inputs, case=one, q=inputs.q[:, :, -1:].contiguous())
    answer = subject.answer(last)
    prefill = subject.answer(inputs).output.out[:, :, -1:]
    expected = subject.reference(last).expected["out"]
    sigma = torch.from_numpy(expected.sigma).to(prefill.device)[: prefill.shape[0]]
    if expected.value.shape == tuple(prefill.shape):
        z = ((answer.output.out - prefill).double().abs() / sigma.clamp_min(1e-300)).nan_to_num(nan=math.inf)
        limit = 2 * MAX_Z[subject.contract]  # both are off by their own noise
        if float(z.max()) > limit:
            at = tuple(int(i) for i in (z == z.max()).nonzero()[0])
            reason = f"decoding differs from the prefill's last row by {float(z.max()):.3g} times the noise"
            yield PropertyFailure(one, "out", at, reason, min(LARGEST, float(z.max()) / limit))


@holds("the LSE's base, merging of splits")
def halves_merge_by_lse(subject: Subject) -> Iterator[PropertyFailure]:
    """Two halves of the keys, merged by their LSE, give the whole (if the backend returns an LSE)."""
    case = subject.case("full", direction="fwd", k_len=128)
    half = None if case is None else replace(case, k_len=64)
    if case is None or half is None or not subject.takes(half):
        return
    inputs = subject.inputs(case)
    parts = []
    for keys in (slice(0, 64), slice(64, 128)):
        output = subject.answer(
            changed(inputs, case=half, k=inputs.k[:, :, keys], v=inputs.v[:, :, keys])
        ).output
        if output.lse is None:
            raise Refused("gives no LSE")
        parts.append((output.out.double(), output.lse.double()))
    lse = torch.logaddexp(parts[0][1], parts[1][1])
    merged = sum(out * torch.exp(part - lse)[..., None] for out, part in parts)
    expected = subject.reference(inputs).expected["out"]
    if expected.value.shape != tuple(merged.shape):  # type: ignore[union-attr]
        return
    value, sigma = (torch.from_numpy(x).to(subject.device) for x in (expected.value, expected.sigma))
    z = ((merged - value).abs() / sigma).nan_to_num(nan=math.inf)
    limit = 2 * MAX_Z[subject.contract]  # each half was rounded on its own
    if float(z.max()) > limit:
        at = tuple(int(i) for i in (z == z.max()).nonzero()[0])
        reason = (
            f"two halves merged by their LSE are {float(z.max()):.3g} times the noise away from the whole"
        )
        yield PropertyFailure(case, "out", at, reason, min(LARGEST, float(z.max()) / limit))


@holds("overflow")
def large_inputs_stay_finite(subject: Subject) -> Iterator[PropertyFailure]:
    """q 32 times as large gives a finite out within the range of V, widened by its noise."""
    for _, case in subject.any_case(direction="fwd"):
        inputs = subject.inputs(case)
        larger = changed(inputs, q=32 * inputs.q)
        yield from judged(
            case, subject.reference(larger), subject.answer(larger), larger, "q 32 times as large"
        )
        break


@holds("batch limits, broadcasts of the first batch row")
def a_batch_row_alone_is_the_same(subject: Subject) -> Iterator[PropertyFailure]:
    """Each batch row computed alone is right, as it is within the batch."""
    for _, case in subject.any_case(batch=3, direction="fwd"):
        if case.mask.varies_over_batch:
            continue
        alone = replace(case, batch=1)
        inputs = subject.inputs(case)
        for b in (0, 2):
            some = slice(b, b + 1)
            row = changed(inputs, case=alone, q=inputs.q[some], k=inputs.k[some], v=inputs.v[some])
            yield from judged(alone, subject.reference(row), subject.answer(row), row, f"batch row {b} alone")
        break


def _reordered(x: Tensor | None, dim: int, order: Tensor) -> Tensor | None:
    return None if x is None else x.index_select(dim, order)


@holds("rescaling that depends on the order of keys, positions that the mask does not depend on")
def keys_in_another_order_give_the_same(subject: Subject) -> Iterator[PropertyFailure]:
    """Keys and values in another order, under the mask with its columns in that order, give the same answer."""
    for mask in ("explicit", "full"):
        case = subject.case(mask)
        if case is None:
            continue
        inputs = subject.inputs(case)
        order = torch.randperm(case.k_len, generator=torch.Generator().manual_seed(subject.seed))
        back = order.argsort().to(subject.device)
        other = case
        if mask == "explicit":
            other = replace(case, mask=Explicit(allowed_pairs(case)[..., order]))
        if not subject.takes(other):
            continue
        order = order.to(subject.device)
        k, v = inputs.k.index_select(2, order), inputs.v.index_select(2, order)
        reordered = subject.answer(changed(inputs, case=other, k=k, v=v))
        gradients = reordered.gradients
        if gradients is not None:
            dk, dv = gradients.dk.index_select(2, back), gradients.dv.index_select(2, back)
            gradients = replace(gradients, dk=dk, dv=dv)
        answer = Answer(reordered.output, gradients)
        yield from judged(case, subject.reference(inputs), answer, inputs, "keys in another order")
        return


@holds("strides and offsets of heads, heads that are not computed")
def heads_in_another_order_give_the_same(subject: Subject) -> Iterator[PropertyFailure]:
    """Key heads in another order, their query heads with them, give each head its own answer."""
    for heads in ({"q_heads": 8, "kv_heads": 4}, {"q_heads": 4}):
        alike = (case for _, case in subject.any_case(**heads) if not case.mask.varies_over_heads)
        case = next(alike, None)
        if case is None:
            continue  # without grouped queries, try as many key heads
        inputs = subject.inputs(case)
        order = torch.randperm(case.kv_heads, generator=torch.Generator().manual_seed(subject.seed + 1))
        order = order.to(subject.device)
        whole = (order[:, None] * case.group + torch.arange(case.group, device=order.device)).flatten()
        q, k, v = (
            x.index_select(1, at) for x, at in ((inputs.q, whole), (inputs.k, order), (inputs.v, order))
        )
        reordered = subject.answer(changed(inputs, q=q, k=k, v=v, dout=_reordered(inputs.dout, 1, whole)))
        back, each = order.argsort(), whole.argsort()
        gradients = reordered.gradients
        if gradients is not None:
            gradients = Gradients(
                gradients.dq.index_select(1, each),
                gradients.dk.index_select(1, back),
                gradients.dv.index_select(1, back),
            )
        lse = reordered.output.lse
        output = Output(reordered.output.out.index_select(1, each), _reordered(lse, 1, each))
        yield from judged(
            case, subject.reference(inputs), Answer(output, gradients), inputs, "heads in another order"
        )
        return
