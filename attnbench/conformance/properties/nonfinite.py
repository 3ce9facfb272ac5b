"""NaN and infinity reach the answers that must have them, and no others.

A place that is not finite is put into one tensor of each (batch row, key head); other pairs of them tell whether it
crosses. Three sets follow from the mask alone: what *must* be non-finite, what *may* be if masked pairs are left out,
and what *may* be if their weight of 0 is multiplied in (0 * NaN is NaN). All else is right as if nothing were there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import Gradients, Output
from attnbench.conformance.properties.property import PropertyFailure, holds
from attnbench.conformance.subject import Answer, Raised, Refused, Subject, allowed_pairs, changed
from attnbench.judge.reference import Reference
from attnbench.judge.verdict import judge
from attnbench.problem import Case, Inputs

SWALLOWED = (
    "NaN is swallowed by a maximum, a minimum or a clamp that takes the other number (fmax, exp2 of a clamp)"
)
CROSSES = "NaN crosses to rows, heads or batch rows that never read it: something is shared among them"
SPREADS = (
    "a masked weight of 0 is multiplied with the value, or a masked score is made by a sum: 0 * NaN is NaN"
)
FACT = "NaN at masked places"
FEATURE = 1  # the feature of q, k or v that holds the number


@dataclass(frozen=True)
class Poison:
    """One number in one tensor, at a key that most queries may attend, or that fewest may (q: at a query)."""

    tensor: str
    value: float
    masked: bool = False


POISONS = (
    Poison("v", math.nan),
    Poison("k", math.nan),
    Poison("q", math.nan),
    Poison("v", math.inf),
    None,  # left as it is
    Poison("v", math.nan, masked=True),
    Poison("k", math.nan, masked=True),
    Poison("k", math.inf, masked=True),
)


@dataclass
class Sets:
    """By tensor, bool in its shape: what must be non-finite, and what may be if masked pairs are left out, or not.

    `free`: what may hold any number, since infinity times infinity has no exact value.
    """

    must: dict[str, Tensor]
    may: dict[str, Tensor]
    may_spread: dict[str, Tensor]
    free: dict[str, Tensor]


def sets_of(case: Case, bad: dict[str, Tensor], is_nan: dict[str, Tensor], allowed: Tensor) -> Sets:
    """The three sets from non-finite places `bad` of q, k, v (`is_nan`: those that hold NaN) and allowed [B, H, Q, K].

    Through NaN in q or k a row's weights are NaN, and with them all of out; through a value that is not finite the
    row's out in that feature is not. A row, or the part of a row that one tile or split reads, in which every score is
    NaN may be taken for one without a key, whose out is 0: a NaN key must show only beside keys that the row attends,
    and NaN in q, which makes a whole row NaN, need not. Gradients may be non-finite where out is, and need not:
    torch's own clamp has gradient 0 at NaN.
    """
    of = lambda places, name: places[name].repeat_interleave(case.group, 1)  # noqa: E731  [B, H, K, dim]
    seen = lambda keys: (allowed & keys[:, :, None]).any(-1)  # noqa: E731  [B, H, K] -> [B, H, Q]
    some = allowed.any(-1)  # [B, H, Q]
    nan_keys = of(is_nan, "k").any(-1)
    beside = torch.nn.functional.pad(allowed & ~nan_keys[:, :, None], (1, 1), value=case.k_len > 1)
    nan_weights = (allowed & nan_keys[:, :, None] & beside[..., :-2] & beside[..., 2:]).any(-1)
    bad_values = (allowed[..., None] & of(bad, "v")[:, :, None]).any(3)  # [B, H, Q, Dv]
    shape = lambda x, like: x[..., None].expand(*x.shape, like)  # noqa: E731
    must = {"out": shape(nan_weights, case.v_dim) | bad_values, "lse": nan_weights}
    bad_weights = (bad["q"].any(-1) & some) | seen(of(bad, "k").any(-1))
    row = bad_weights | bad_values.any(-1)
    # The weights of masked keys in such a row come from its LSE, which is NaN: their gradients may be, too.
    spoiled = _of_group(case, row.any(-1)[..., None])  # [B, Hkv, 1]
    keys = spoiled.expand(case.batch, case.kv_heads, case.k_len)
    may = _by_tensor(case, row, keys)
    here = torch.stack([x.flatten(2).any(-1).unflatten(1, (case.kv_heads, -1)).any(-1) for x in bad.values()])
    anywhere = here.any(0)  # [B, Hkv]
    rows = anywhere.repeat_interleave(case.group, 1)[..., None].expand(row.shape)
    may_spread = _by_tensor(case, rows, anywhere[..., None].expand(keys.shape))
    return Sets(must, may, may_spread, may | {"out": shape(bad_weights, case.v_dim)})


def _by_tensor(case: Case, rows: Tensor, keys: Tensor) -> dict[str, Tensor]:
    d, dv = case.head_dim, case.v_dim
    wide = lambda x, dim: x[..., None].expand(*x.shape, dim)  # noqa: E731
    return {
        "out": wide(rows, dv),
        "lse": rows,
        "dq": wide(rows, d),
        "dk": wide(keys, d),
        "dv": wide(keys, dv),
    }


def _of_group(case: Case, x: Tensor) -> Tensor:
    """Whether any query head of a group has it: [B, H, ...] -> [B, Hkv, ...]."""
    return x.unflatten(1, (case.kv_heads, case.group)).any(2)


@holds("NaN that is swallowed, or that crosses to rows, heads or batch rows which never read it")
def nan_and_infinity_stay_where_they_belong(subject: Subject) -> Iterator[PropertyFailure]:
    """NaN and infinity in q, k, v, at allowed and at masked places, spoil what they must and nothing that they may not.

    A backend with `masked_nan="ignored"` promises that masked places do not count; of others it is told.
    """
    if subject.backend.capabilities.layer_level:
        raise Refused("the projections of a layer multiply the NaN of one head by the 0 of others")
    spreads: set[str] = set()
    asked = False
    for case in _cases(subject):
        inputs, allowed = subject.inputs(case), allowed_pairs(case, subject.device)
        reference = subject.reference(inputs)
        slots = [(b, h) for b in range(case.batch) for h in range(case.kv_heads)]
        for first in range(0, len(POISONS), len(slots)):
            poisons = dict(zip(slots, POISONS[first : first + len(slots)], strict=False))
            poisoned = _poisoned(inputs, poisons, allowed)
            try:
                answer = subject.answer(poisoned)
            except Raised as error:
                if isinstance(subject.backend, FunctionBackend):
                    raise Refused(f"with NaN in q, k or v it {error}") from error
                raise
            asked = True
            yield from _judged(subject, inputs, poisoned, allowed, reference, answer, spreads)
    if spreads and subject.backend.capabilities.masked_nan != "ignored":
        places = " and ".join(sorted(spreads))
        subject.facts[FACT] = (
            f"that of {places} reaches rows that may not attend it; --declare masked_nan=ignored if it must not"
        )
    elif asked and not spreads:
        subject.facts.setdefault(FACT, "changes nothing for them")


def _cases(subject: Subject) -> list[Case]:
    """A case with a key that no query may attend, and one with keys that some may, if the backend takes such masks."""
    unseen: list[Case] = []
    others: list[Case] = []
    for _, case in subject.any_case(q_heads=4):  # as in gradient_identities: their references are kept
        allowed = allowed_pairs(case)
        if bool((~allowed.any(2)).any()):
            unseen.append(case)
        else:
            others.append(case)
    others.sort(key=lambda case: case.mask.kinds == {"full"})
    return others[:1] + unseen[:1]


def _poisoned(inputs: Inputs, poisons: dict[tuple[int, int], Poison | None], allowed: Tensor) -> Inputs:
    """The inputs with a number of each poison in its batch row and key head."""
    case = inputs.case
    seen = allowed.unflatten(1, (case.kv_heads, case.group)).sum(
        (2, 3)
    )  # queries that attend a key: [B, Hkv, K]
    tensors = {name: getattr(inputs, name).clone() for name in "qkv"}
    for (b, h), poison in poisons.items():
        if poison is None:
            continue
        if poison.tensor == "q":
            at, head = case.q_len // 2, h * case.group
        else:
            counts = seen[b, h]
            at, head = int(counts.argmin() if poison.masked else counts.argmax()), h
        tensors[poison.tensor][b, head, at, min(FEATURE, tensors[poison.tensor].shape[3] - 1)] = poison.value
    return changed(inputs, **tensors)


def _judged(
    subject: Subject,
    inputs: Inputs,
    poisoned: Inputs,
    allowed: Tensor,
    reference: Reference,
    answer: Answer,
    spreads: set[str],
) -> Iterator[PropertyFailure]:
    case = inputs.case
    bad = {name: ~getattr(poisoned, name).isfinite() for name in "qkv"}
    is_nan = {name: getattr(poisoned, name).isnan() for name in "qkv"}
    sets = sets_of(case, bad, is_nan, allowed)
    named = answer.tensors | ({} if answer.output.lse is None else {"lse": answer.output.lse})
    promised = subject.backend.capabilities.masked_nan == "ignored"
    if any(x.shape != sets.may[name].shape for name, x in named.items()):
        return  # a wrong form, which other checks find
    for name, must in sets.must.items():
        swallowed = must & named[name].isfinite() if name in named else ~must.new_ones(1)
        if bool(swallowed.any()):
            x = named[name]
            at = _first(swallowed)
            reason = f"{name}{list(at)} is {float(x[at]):.6g}, and NaN or infinity that it reads makes it non-finite"
            yield PropertyFailure(case, name, at, reason, causes=(SWALLOWED,))
            return
    # What may be non-finite, and is, is no error: it takes the exact number before the rest is judged.
    clean = {}
    for name, x in named.items():
        expected = reference.expected[name].value
        if expected.shape != tuple(x.shape):
            return  # a sample
        crossed = ~x.isfinite() & sets.may_spread[name] & ~sets.may[name]
        if bool(crossed.any()):
            slots = crossed.flatten(2).any(-1)  # [B, H] or [B, Hkv]
            slots = slots if name in ("dk", "dv") else _of_group(case, slots)
            spreads |= {t for t in "kv" if bool((bad[t].flatten(2).any(-1) & slots).any())}
            if promised:
                at = _first(crossed)
                reason = f"{name}{list(at)} is {float(x[at])} through a masked place, which is declared to be ignored"
                yield PropertyFailure(case, name, at, reason, causes=(SPREADS,))
                return
        exact = torch.from_numpy(expected).to(x.device)
        excused = (~x.isfinite() & sets.may_spread[name]) | sets.free[name]
        clean[name] = torch.where(excused, exact.to(x.dtype), x)
    gradients = None
    if answer.gradients is not None:
        gradients = Gradients(clean["dq"], clean["dk"], clean["dv"], answer.gradients.scores)
    verdict = judge(reference, Output(clean["out"], clean.get("lse")), gradients, inputs)
    for name, error in verdict.wrong.items():
        reason = f"with NaN and infinity elsewhere: {error.reason}"
        yield PropertyFailure(case, name, error.worst, reason, error.over_budget, causes=(CROSSES,))
        return


def _first(x: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in x.nonzero()[0])
