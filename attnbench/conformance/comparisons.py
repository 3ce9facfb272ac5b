"""The calls that a claim to the bit compares: a case again, a row alone, a shorter prefill, a decoded query.

What is asked for alone is copied into tensors of its own, contiguous as those of the whole are. Nothing here runs on
poisoned memory: that needs torch's deterministic mode, in which several kernels take other algorithms than their users
get.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import islice, product

import torch
from torch import Tensor

from attnbench.backend.interface import Prepared
from attnbench.conformance.subject import Subject, changed
from attnbench.problem import Case, Full, Inputs, Padding

HEADS: tuple[dict[str, int], ...] = (  # the first that are taken
    {"q_heads": 4, "kv_heads": 2, "head_dim": 64},
    {"q_heads": 4, "head_dim": 64},
    {"q_heads": 4, "kv_heads": 2, "head_dim": 128},
    {"q_heads": 4, "head_dim": 128},
)


@dataclass(frozen=True)
class Scope:
    """How much is asked.

    wholes     tokens of the whole sequence and batch rows; the first that are taken
    within     tokens of shorter prefills and caches; `most` of those that are taken
    batches    batch sizes, the largest first
    together   queries that are decoded together
    """

    wholes: tuple[tuple[int, int], ...]
    within: tuple[int, ...]
    most: int
    batches: tuple[int, ...]
    together: tuple[int, ...]


# torch's CPU kernel takes other tiles from 192 and from 768 queries on. GPU kernels have tiles of up to 256 keys, and
# sums in another order show from the third tile on.
FEW = Scope(((200, 3), (128, 3), (256, 3)), (65, 64), 1, (3,), (1,))
MANY = Scope(((800, 3), *FEW.wholes), (17, 64, 129, 191, 513, 799), 6, (17, 8, 3, 2), (1, 16))
FEW_ON_GPU = replace(FEW, wholes=((600, 3), (768, 3), *FEW.wholes))
MANY_ON_GPU = Scope(
    ((2500, 3), *FEW_ON_GPU.wholes), (17, 64, 129, 191, 513, 1025, 2048), 7, (65, 17, 8, 3, 2), (1, 16)
)

Tensors = dict[str, Tensor]
# The case that was run, what is compared, its tensors, and those wanted.
Compared = tuple[Case, str, Tensors, Tensors]


def repeated(subject: Subject, repeats: int, cases: Iterable[Case]) -> Iterator[Compared]:
    """Each case again and again, in turn in two storages: memory that is given back may lie elsewhere the next time."""
    for case in cases:
        inputs = subject.inputs(case)
        here = [(x, subject.backend.prepare(case, x)) for x in (inputs, inputs.fresh())]
        first: Tensors = {}
        for n in range(repeats + 1):
            found = _run(here[n % 2][1], here[n % 2][0])
            if n:
                yield case, f"call {n + 1} of the same", found, first
            first = first or found


def repeatable_forward(subject: Subject, scope: Scope, repeats: int) -> Iterator[Compared]:
    """Repeated calls give the same out, in a prefill and in decoding."""
    cases = _prefill(subject, scope), _decoding(subject, scope)
    yield from repeated(subject, repeats, dict.fromkeys(case for case in cases if case is not None))


def repeatable_backward(subject: Subject, scope: Scope, repeats: int) -> Iterator[Compared]:
    """Repeated calls of forward and backward give the same gradients."""
    case = _prefill(subject, scope, direction="fwd_bwd") if subject.backward else None
    yield from repeated(subject, repeats, [] if case is None else [case])


def batch_invariant(subject: Subject, scope: Scope, repeats: int) -> Iterator[Compared]:
    """A batch row alone gives the out that it gives in a batch of any size, in a prefill and in decoding."""
    cases = _prefill(subject, scope), _decoding(subject, scope)
    for whole in dict.fromkeys(case for case in cases if case is not None):
        batches = [n for n in scope.batches if subject.takes(replace(whole, batch=n))]
        if not batches or not subject.takes(replace(whole, batch=1)):
            continue
        inputs = subject.inputs(replace(whole, batch=batches[0]))
        kind = "decoding" if whole.q_len == 1 else "prefill"
        for batch in batches:
            out = _out(subject, _some_rows(inputs, slice(0, batch)))
            for b in (0, batch - 1):
                row = slice(b, b + 1)
                alone = _out(subject, _some_rows(inputs, row))
                if out and alone:
                    what = f"{kind}, batch row {b} of {batch} and alone"
                    yield replace(whole, batch=batch), what, {"out": out["out"][row]}, alone
    yield from _unequal_caches(subject, scope)


def _unequal_caches(subject: Subject, scope: Scope) -> Iterator[Compared]:
    """Each row of a batch whose caches are padded to the longest, and the row alone, with that padding and without."""
    whole = _decoding(subject, scope)
    padded = None if whole is None else _padded(subject, whole)
    if padded is None:
        return
    inputs = subject.inputs(padded)
    out = _out(subject, inputs)
    for b, length in enumerate(_caches(padded.k_len)):
        row, keys = slice(b, b + 1), slice(0, length)
        kept = replace(padded, batch=1, mask=Padding((length,)))
        cut = replace(padded, batch=1, mask=Full(), k_len=length)
        k, v = inputs.k[row, :, keys], inputs.v[row, :, keys]
        for x, words in (
            (_some_rows(inputs, row, case=kept), "with that padding"),
            (_some_rows(inputs, row, case=cut, k=k, v=v), "without"),
        ):
            alone = _out(subject, x)
            if alone and out:
                what = f"decoding, {length} keys padded to {padded.k_len} in a batch and alone {words}"
                yield x.case, what, {"out": out["out"][row]}, alone


def length_invariant(subject: Subject, scope: Scope, repeats: int) -> Iterator[Compared]:
    """A causal prefill of n tokens gives the first n rows of a longer one."""
    whole = _prefill(subject, scope, masks=("causal",))
    if whole is None or whole.q_len != whole.k_len:
        return
    inputs = subject.inputs(whole)
    out = _out(subject, inputs)
    for n in _within(subject, scope, whole):
        rows = slice(0, n)
        short = replace(whole, q_len=n, k_len=n)
        part = _copies(q=inputs.q[:, :, rows], k=inputs.k[:, :, rows], v=inputs.v[:, :, rows])
        got = _out(subject, changed(inputs, case=short, **part))
        if got and out:
            yield short, f"prefill of {n} tokens and of {whole.q_len}", got, {"out": out["out"][:, :, rows]}


def decode_equals_prefill(subject: Subject, scope: Scope, repeats: int) -> Iterator[Compared]:
    """Queries decoded against a cache give the rows of a causal prefill: one, several, each with its own cache."""
    whole = _prefill(subject, scope, masks=("causal",))
    out = None
    if whole is not None and whole.q_len == whole.k_len:
        inputs = subject.inputs(whole)
        out = _out(subject, inputs)
    if whole is None or out is None:
        return
    for together in scope.together:
        for n in (whole.q_len, *_within(subject, scope, whole, together)):
            rows = slice(n - together, n)
            decode = replace(whole, q_len=together, k_len=n)
            part = _copies(q=inputs.q[:, :, rows], k=inputs.k[:, :, :n], v=inputs.v[:, :, :n])
            got = _out(subject, changed(inputs, case=decode, **part))
            if got:
                what = f"the last {together} of {n} tokens decoded and prefilled"
                yield decode, what, got, {"out": out["out"][:, :, rows]}
    padded = _padded(subject, whole)
    if padded is None:
        return
    caches = _caches(padded.k_len)
    each, last = torch.arange(padded.batch), torch.tensor(caches) - 1
    rows = slice(0, padded.batch)
    part = _copies(q=inputs.q[each, :, last][:, :, None], k=inputs.k[rows], v=inputs.v[rows])
    got = _out(subject, changed(inputs, case=padded, **part))
    if got:
        what = f"caches of {', '.join(map(str, caches))} keys decoded in a batch and prefilled"
        yield padded, what, got, {"out": out["out"][each, :, last][:, :, None]}


def _prefill(
    subject: Subject, scope: Scope, direction: str = "fwd", masks: tuple[str, ...] = ()
) -> Case | None:
    """The whole sequence, causal if that is taken; of the first sizes that are, or else those of the properties."""
    for mask in masks or ("causal", *subject.makers):
        for (tokens, batch), heads in product(scope.wholes, HEADS):
            case = subject.case(mask, direction=direction, batch=batch, q_len=tokens, k_len=tokens, **heads)
            if case is not None and not case.mask.varies_over_batch:
                return case
        case = subject.case(mask, direction=direction)
        if case is not None and not case.mask.varies_over_batch:
            return case
    return None


def _decoding(subject: Subject, scope: Scope) -> Case | None:
    """One query against the whole sequence."""
    for mask in ("causal", "full"):
        for (tokens, batch), heads in product(scope.wholes, HEADS):
            case = subject.case(mask, direction="fwd", batch=batch, q_len=1, k_len=tokens, **heads)
            if case is not None:
                return case
    return None


def _padded(subject: Subject, like: Case) -> Case | None:
    """One query per row against caches of unequal lengths, padded to the longest."""
    caches = _caches(like.k_len)
    if "padding" not in subject.makers or like.batch < len(caches) or min(caches) < 1:
        return None
    case = replace(like, batch=len(caches), q_len=1, mask=Padding(caches))
    return case if subject.takes(case) else None


def _caches(longest: int) -> tuple[int, ...]:
    """Keys in the cache of each batch row: no multiples of a tile, and one past the border of two splits."""
    return (longest, longest * 3 // 4, longest // 3)


def _within(subject: Subject, scope: Scope, whole: Case, queries: int | None = None) -> list[int]:
    """Tokens below those of the whole that are taken with so many queries (None: as many as tokens)."""
    fewer = (n for n in scope.within if (queries or 0) <= n < whole.k_len)
    taken = (n for n in fewer if subject.takes(replace(whole, q_len=queries or n, k_len=n)))
    return list(islice(taken, scope.most))


def _copies(**tensors: Tensor) -> Tensors:
    return {name: x.clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}


def _some_rows(inputs: Inputs, rows: slice, case: Case | None = None, **tensors: Tensor) -> Inputs:
    """Batch rows in tensors of their own; of this case, or of that of the inputs with fewer rows."""
    q, k, v = (tensors.get(name, getattr(inputs, name)[rows]) for name in ("q", "k", "v"))
    return changed(inputs, case=case or replace(inputs.case, batch=q.shape[0]), **_copies(q=q, k=k, v=v))


def _out(subject: Subject, inputs: Inputs) -> Tensors | None:
    """The output on these inputs; None if the backend does not take their case, or nobody asks for it."""
    case = inputs.case
    if not subject.takes(case) or (subject.where is not None and not subject.where(case)):
        return None
    return _run(subject.backend.prepare(case, inputs), inputs)


def _run(prepared: Prepared, inputs: Inputs) -> Tensors:
    """One call, its tensors copied: the next call may write into the same memory."""
    found = {"out": prepared.forward().out}
    if inputs.dout is not None:
        gradients = prepared.backward(inputs.dout)
        found |= {"dq": gradients.dq, "dk": gradients.dk, "dv": gradients.dv}
    prepared.drop_graph()
    return {name: x.clone() for name, x in found.items()}


COMPARISONS: dict[str, Callable[[Subject, Scope, int], Iterator[Compared]]] = {
    "bitwise_repeatable_forward": repeatable_forward,
    "bitwise_repeatable_backward": repeatable_backward,
    "batch_invariant": batch_invariant,
    "length_invariant": length_invariant,
    "decode_equals_prefill": decode_equals_prefill,
}
# What a backend takes, of which nothing is asked.
WITHOUT = {
    "bitwise_repeatable_forward": "no case of it",
    "bitwise_repeatable_backward": "no backward",
    "batch_invariant": "no batch of two rows and each row alone",
    "length_invariant": "no causal prefill of two lengths",
    "decode_equals_prefill": "no causal prefill with decoding",
}
