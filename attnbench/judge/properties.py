"""What must hold whatever the numbers? Properties of attention that need no exact answer, or none with a tolerance.

Those that hold in every bit see a fault of any size, at any length and in any dtype; those with a tolerance take
it from the case's noise. Each is a named check, run where the backend's capabilities allow its cases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnbench.judge.protocol import same_bits
from attnbench.judge.subject import Answer, Subject, allowed_pairs, changed
from attnbench.judge.verdict import LARGEST, MAX_Z, Reference, judge
from attnbench.problem import Case, Inputs


@dataclass(frozen=True)
class Finding:
    """Where a property does not hold: the case, the tensor and index, and what was found there."""

    case: Case
    tensor: str
    worst: tuple[int, ...]
    reason: str
    error_over_budget: float = LARGEST
    distribution: str = "randn"


@dataclass(frozen=True)
class Property:
    """A named check. `run` yields what it finds, nothing where the property holds; it may raise Refused or Failed."""

    name: str
    catches: str
    run: Callable[[Subject], Iterator[Finding]]


PROPERTIES: dict[str, Property] = {}


def _property(
    catches: str,
) -> Callable[[Callable[[Subject], Iterator[Finding]]], Callable[[Subject], Iterator[Finding]]]:
    def register(run: Callable[[Subject], Iterator[Finding]]) -> Callable[[Subject], Iterator[Finding]]:
        name = run.__name__
        PROPERTIES[name] = Property(name, catches, run)
        return run

    return register


def _first_difference(a: Tensor, b: Tensor) -> tuple[int, ...] | None:
    if same_bits(a, b):
        return None
    different = ~((a == b) | (a.isnan() & b.isnan()))
    if not bool(different.any()):
        return None  # 0 and -0
    return tuple(int(i) for i in different.nonzero()[0])


def _bits(case: Case, got: dict[str, Tensor], wanted: dict[str, Tensor], what: str) -> Iterator[Finding]:
    for name, want in wanted.items():
        at = _first_difference(got[name], want)
        if at is not None:
            yield Finding(
                case, name, at, f"{what}: {name}{list(at)} is {float(got[name][at])}, not {float(want[at])}"
            )


def _judged(case: Case, reference: Reference, answer: Answer, inputs: Inputs, what: str) -> Iterator[Finding]:
    verdict = judge(reference, answer.output, answer.gradients, inputs)
    for name, error in verdict.errors.items():
        if error["over_budget"] > 1:
            reason = f"{what}: {error['reason']}"
            yield Finding(
                case, name, tuple(error["worst"]), reason, error["over_budget"], inputs.distribution
            )


@_property("off by one, skipped tiles, unwritten rows, a mask of another batch row or head")
def mask_probe(subject: Subject) -> Iterator[Finding]:
    """With q = 0 every allowed key has the same weight; with V a slice of the identity, out > 0 is the mask itself."""
    for lengths in ({}, {"q_len": 129, "k_len": 193}, {"q_len": 130, "k_len": 66}):
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
                    yield Finding(case, "out", (b, h, i, j), reason)
                    break


@_property("leaks from masked keys, causality, padding")
def masked_keys_do_not_leak(subject: Subject) -> Iterator[Finding]:
    """Huge finite keys and values that a row may not attend leave every bit of the row."""
    huge = 1e3 if subject.dtype == "fp16" else 1e30
    for _, case in subject.any_case(direction="fwd"):
        allowed = allowed_pairs(case, subject.device)
        inputs = subject.inputs(case)
        before = subject.answer(inputs).output.out.clone()
        for i in sorted({0, case.q_len // 2, case.q_len - 1}):
            seen = (
                allowed[:, :, i].unflatten(1, (case.kv_heads, case.group)).any(2)[..., None]
            )  # [B, Hkv, K, 1]
            if bool(seen.all()):
                continue
            k, v = torch.where(seen, inputs.k, huge), torch.where(seen, inputs.v, -huge)
            after = subject.answer(changed(inputs, k=k, v=v)).output.out
            # A key that only another head of the group may attend still holds its own number.
            yield from _bits(
                case,
                {"out": after[:, :, i : i + 1]},
                {"out": before[:, :, i : i + 1]},
                f"masked keys of query {i} leak",
            )


@_property("masks in the backward")
def unseen_keys_get_no_gradient(subject: Subject) -> Iterator[Finding]:
    """dk and dv of a key that no query may attend are exactly 0."""
    if not subject.backward:
        return
    for _, case in subject.any_case():
        allowed = allowed_pairs(case, subject.device)
        unseen = ~allowed.unflatten(1, (case.kv_heads, case.group)).any(2).any(2)  # [B, Hkv, K]
        if not bool(unseen.any()):
            continue
        gradients = subject.answer(subject.inputs(case)).gradients
        assert gradients is not None
        for name, x in (("dk", gradients.dk), ("dv", gradients.dv)):
            wrong = (x != 0) & unseen[..., None]
            if bool(wrong.any()):
                at = tuple(int(i) for i in wrong.nonzero()[0])
                yield Finding(
                    case, name, at, f"{name}{list(at)} is {float(x[at])}; no query may attend that key"
                )


@_property("nearly every fault of a backward")
def gradient_identities(subject: Subject) -> Iterator[Finding]:
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
                yield Finding(case, name, at, reason, min(LARGEST, worst / MAX_Z[subject.contract]))


@_property("no maximum taken off, products of elements, wrong row fetched")
def one_hot_retrieval(subject: Subject) -> Iterator[Finding]:
    """A query that scores 200 at one key and 0 elsewhere gives the bits of that key's value."""
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
    out = subject.answer(changed(inputs, q=q, k=k)).output.out
    wanted = inputs.v.repeat_interleave(case.group, 1)[:, :, target]
    yield from _bits(case, {"out": out[:, :, : len(target)]}, {"out": wanted}, "one key is asked for")


@_property("the scale: missing, twice, of another head dim, cached by shape")
def scale_moves_between_q_and_scale(subject: Subject) -> Iterator[Finding]:
    """(q / 4, 4 scale) gives the same bits as (q, scale): powers of two round nothing."""
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
            yield from _bits(
                case, {"out": after}, {"out": before}, "(q / 4, 4 scale) differs from (q, scale)"
            )
            break


@_property("intermediates of eight bits, fixed offsets, saturation")
def powers_of_two_pass_through(subject: Subject) -> Iterator[Finding]:
    """4 V gives 4 out, and with 8 dO: 32 dq, 32 dk and 8 dv, in every bit (not fp16, which has subnormals)."""
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
        if not subject.backend.capabilities.deterministic:
            factors = {"out": 4}
        wanted = {name: factors[name] * x for name, x in before.items() if name in factors}
        yield from _bits(case, after, wanted, "4 V and 8 dO")
        break


@_property("sign handling, strides of q and k")
def signs_cancel(subject: Subject) -> Iterator[Finding]:
    """(-q, -k) gives the same bits of out."""
    for _, case in subject.any_case(direction="fwd"):
        inputs = subject.inputs(case)
        before = subject.answer(inputs).output.out.clone()
        after = subject.answer(changed(inputs, q=-inputs.q, k=-inputs.k)).output.out
        yield from _bits(case, {"out": after}, {"out": before}, "(-q, -k) differs from (q, k)")
        break


@_property("strides taken for granted, dO's above all (torch's sum gives a dO of stride 0)")
def strides_make_no_difference(subject: Subject) -> Iterator[Finding]:
    """dO expanded from one number, and q, k, v that are every second row of larger tensors, are judged as any."""
    case = next((case for _, case in subject.any_case()), None)
    if case is None:
        return
    inputs = subject.inputs(case)
    if inputs.dout is not None:
        expanded = changed(inputs, dout=torch.ones_like(inputs.dout[:1, :1, :1, :1]).expand_as(inputs.dout))
        yield from _judged(
            case, subject.reference(expanded), subject.answer(expanded), expanded, "dO of stride 0"
        )
    apart = {
        name: torch.stack((x, -x), 3).flatten(2, 3)[:, :, ::2]
        for name, x in (("q", inputs.q), ("k", inputs.k))
    }
    strided = changed(inputs, **apart, v=torch.cat((inputs.v, -inputs.v), -1)[..., : case.v_dim])
    yield from _judged(
        case, subject.reference(inputs), subject.answer(strided), inputs, "q, k, v with gaps between rows"
    )


@_property("head mapping of grouped queries")
def grouped_heads_equal_repeated_keys(subject: Subject) -> Iterator[Finding]:
    """Grouped queries give what they give on keys and values repeated for each of their heads."""
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
        yield from _judged(case, subject.reference(repeated), plain, repeated, "held against repeated keys")
        return


@_property("alignment of the causal mask in decoding")
def decode_equals_the_last_row(subject: Subject) -> Iterator[Finding]:
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
            yield Finding(one, "out", at, reason, min(LARGEST, float(z.max()) / limit))


@_property("the LSE's base, merging of splits")
def halves_merge_by_lse(subject: Subject) -> Iterator[Finding]:
    """Two halves of the keys, merged by their LSE, are the whole (where the backend gives an LSE)."""
    case = subject.case("full", direction="fwd", k_len=128)
    half = None if case is None else replace(case, k_len=64)
    if case is None or half is None or not subject.takes(half):
        return
    inputs = subject.inputs(case)
    parts = []
    for keys in (slice(0, 64), slice(64, 128)):
        given = subject.answer(
            changed(inputs, case=half, k=inputs.k[:, :, keys], v=inputs.v[:, :, keys])
        ).output
        if given.lse is None:
            return
        parts.append((given.out.double(), given.lse.double()))
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
        yield Finding(case, "out", at, reason, min(LARGEST, float(z.max()) / limit))


@_property("overflow")
def large_inputs_stay_finite(subject: Subject) -> Iterator[Finding]:
    """q 32 times as large gives a finite out within the range of V, widened by its noise."""
    for _, case in subject.any_case(direction="fwd"):
        inputs = subject.inputs(case)
        larger = changed(inputs, q=32 * inputs.q)
        yield from _judged(
            case, subject.reference(larger), subject.answer(larger), larger, "q 32 times as large"
        )
        break


@_property("batch limits, broadcasts of the first batch row")
def a_batch_row_alone_is_the_same(subject: Subject) -> Iterator[Finding]:
    """Each batch row computed alone is right as it is within the batch."""
    for _, case in subject.any_case(batch=3, direction="fwd"):
        if case.mask.varies_over_batch:
            continue
        alone = replace(case, batch=1)
        inputs = subject.inputs(case)
        for b in (0, 2):
            some = slice(b, b + 1)
            row = changed(inputs, case=alone, q=inputs.q[some], k=inputs.k[some], v=inputs.v[some])
            yield from _judged(
                alone, subject.reference(row), subject.answer(row), row, f"batch row {b} alone"
            )
        break
