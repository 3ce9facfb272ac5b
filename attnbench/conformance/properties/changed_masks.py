"""A mask is read at every call: another window, length or table at the same sizes gives another answer.

A cache or a compiled kernel without the window in its key keeps the first one; a 0 may be taken for "not given", an
unlimited side for the -1 that stands for it. No reference is needed: with q = 0, and V and dO slices of the identity,
out > 0 is the mask of the forward and dv > 0 that of the backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.conformance.properties.property import (
    PropertyFailure,
    Tried,
    holds,
    kept_words,
    once_per_cause,
)
from attnbench.conformance.protocol import same_bits
from attnbench.conformance.subject import Answer, Subject, allowed_pairs, changed
from attnbench.problem import (
    BlockSparse,
    Case,
    Dilated,
    Documents,
    Explicit,
    Full,
    GlobalTokens,
    Inputs,
    Mask,
    Padding,
    PrefixLM,
    SlidingWindow,
)
from attnbench.problem.masks import And, Leaf, Not, Or

READ_AS_MINUS_1 = "an unlimited side of the window, given as -1, is taken for a number"
READ_AS_0 = "an unlimited side of the window is taken for 0"
WIDENED = "a window side of 0 is taken for 'not given', and so for unlimited"
MISREAD_SIDE = "a window with an unlimited side is misread"


@holds(
    "windows, lengths and tables kept from an earlier call, 0 taken for 'not given', -1 taken for a number"
)
def changed_masks_are_read(subject: Subject) -> Iterator[PropertyFailure]:
    """Other windows (a side unlimited, or 0), lengths, documents and tables at the same sizes are obeyed."""
    tried = Tried(subject)
    leaves: set[tuple[str, bool]] = set()
    for _, case in subject.any_case():
        for leaf in leaves_of(case.mask):
            # A window alone and one beside a causal mask are two kernels; the others are asked once.
            key = leaf.name, case.mask.is_combined and isinstance(leaf, SlidingWindow)
            variants = list(_variants(leaf, case)) if key not in leaves else []
            if variants:
                leaves.add(key)
                yield from once_per_cause(_in_turn(subject, tried, case, leaf, variants))
    yield from tried.settle()


def _in_turn(
    subject: Subject, tried: Tried, case: Case, leaf: Leaf, variants: list[Leaf]
) -> Iterator[PropertyFailure]:
    inputs = _probe(subject, case)
    if not subject.has_computed(case) and tried.answer(inputs) is None:
        return
    for variant in variants:
        other = replace(case, mask=with_leaf(case.mask, leaf, variant))
        asked = changed(inputs, case=other)
        answer = tried.answer(asked)
        if answer is None:
            continue
        allowed = allowed_pairs(other, subject.device)
        for name, seen in _masks_seen(asked, answer):
            may = _part(name, allowed, case)
            wrong = seen != may
            if bool(wrong.any()):
                at = tuple(int(i) for i in wrong.nonzero()[0])
                first = (max(0, case.q_len - seen.shape[2]), max(0, case.k_len - seen.shape[3]))
                pair = f"query {at[2] + first[0]} {'may' if may[at] else 'may not'} attend key {at[3] + first[1]}"
                did = "does" if seen[at] else "does not"
                reason = f"{_text(variant)} after other calls of the same sizes: {pair}, and {did} in {name}"
                reason += f" ({int(wrong.sum())} pairs are wrong)"
                out = answer.output.out.clone()
                again = tried.answer(inputs)
                if again is not None and same_bits(out, again.output.out):
                    causes: tuple[str, ...] = (kept_words(f"{leaf.name} mask"),)
                else:
                    causes = _misreading(other, variant, name, seen)
                yield PropertyFailure(other, name, at, reason, causes=causes)
                break


def _text(leaf: Leaf) -> str:
    """The leaf's text, or its kind if it holds a table."""
    return f"another {leaf.name}" if isinstance(leaf, (BlockSparse, Explicit)) else str(leaf)


def _probe(subject: Subject, case: Case) -> Inputs:
    """Inputs under which every allowed key weighs the same, and V and dO tell which key and which query it was."""
    inputs = subject.inputs(case)
    v = torch.zeros_like(inputs.v)
    keys = _last(case.k_len, case.v_dim, v.device)
    v[:, :, keys, keys - int(keys[0])] = 1
    dout = None
    if inputs.dout is not None:
        dout = torch.zeros_like(inputs.dout)
        queries = _last(case.q_len, case.v_dim, v.device)
        dout[:, :, queries, queries - int(queries[0])] = 1
    return changed(inputs, q=torch.zeros_like(inputs.q), v=v, dout=dout)


def _last(length: int, most: int, device: torch.device) -> Tensor:
    return torch.arange(max(0, length - most), length, device=device)


def _masks_seen(inputs: Inputs, answer: Answer) -> Iterator[tuple[str, Tensor]]:
    """The pairs that out and dv show as attended, bool: as `_part` takes them from a mask."""
    case = inputs.case
    yield "out", answer.output.out[..., : min(case.k_len, case.v_dim)] > 0
    if answer.gradients is not None:
        yield "dv", answer.gradients.dv[..., : min(case.q_len, case.v_dim)].transpose(-1, -2) > 0


def _part(name: str, allowed: Tensor, case: Case) -> Tensor:
    """What a tensor shows of a mask [B, H, Q, K].

    out shows the last v_dim keys, [B, H, Q, some]; dv the last v_dim queries, and the pairs that any query head of a
    group may attend, [B, Hkv, some, K].
    """
    if name == "out":
        return allowed[..., -case.v_dim :]
    return allowed.unflatten(1, (case.kv_heads, case.group)).any(2)[:, :, -case.v_dim :]


def _variants(leaf: Leaf, case: Case) -> Iterator[Leaf]:
    """Other masks of the leaf's kind for the same sizes."""
    if isinstance(leaf, SlidingWindow) and None not in (leaf.left, leaf.right):
        if case.mask.is_combined:
            yield from (SlidingWindow(None, leaf.right), SlidingWindow(leaf.left, None))
        else:
            yield from (SlidingWindow(leaf.left, None), SlidingWindow(None, leaf.right), SlidingWindow(0, 0))
    elif isinstance(leaf, Padding):
        for lengths in ([(n + case.k_len // 2) % (case.k_len + 1) for n in leaf.lengths], [0] * case.batch):
            yield Padding(lengths, leaf.side)
    elif isinstance(leaf, Documents):
        half = max(1, case.q_len // 2)
        yield Documents((half, 0, case.q_len - half))
    elif isinstance(leaf, (PrefixLM, GlobalTokens)):
        yield type(leaf)(0)
    elif isinstance(leaf, Dilated):
        yield Dilated(2)
    elif isinstance(leaf, BlockSparse):
        yield BlockSparse((~leaf.blocks).astype(int).tolist(), leaf.block)
    elif isinstance(leaf, Explicit):
        table = leaf.materialize(case.batch, case.q_heads, case.q_len, case.k_len)
        yield Explicit(~table)


def _misreading(case: Case, leaf: Leaf, name: str, seen: Tensor) -> tuple[str, ...]:
    """What the leaf was taken for: the misreading that gives the pairs that were seen, if one does."""
    for words, other in _taken_for(leaf):
        taken = replace(case, mask=with_leaf(case.mask, leaf, other))
        if torch.equal(_part(name, allowed_pairs(taken, str(seen.device)), case), seen):
            return (words,)
    has_unlimited_side = isinstance(leaf, SlidingWindow) and None in (leaf.left, leaf.right)
    return (MISREAD_SIDE,) if has_unlimited_side else ()


def _taken_for(leaf: Leaf) -> Iterator[tuple[str, Mask]]:
    if isinstance(leaf, SlidingWindow):
        for value, words in ((-1, READ_AS_MINUS_1), (0, READ_AS_0)):
            if None in (leaf.left, leaf.right):
                yield words, _sides(leaf, None, value)
        for sides in ((None, None), (None, leaf.right), (leaf.left, None)):
            if 0 in (leaf.left, leaf.right):
                yield WIDENED, SlidingWindow(*sides)
    yield f"{_text(leaf)} is taken for 'not given': nothing is masked by it", Full()


def _sides(leaf: SlidingWindow, old: int | None, new: int) -> SlidingWindow:
    """The window with the number in place of a side; a mask refuses -1, a careless kernel computes with it."""
    taken = SlidingWindow(leaf.left, leaf.right)
    for side in ("left", "right"):
        if getattr(leaf, side) is old:
            object.__setattr__(taken, side, new)
    return taken


def leaves_of(mask: Mask) -> list[Leaf]:
    """The leaves of a mask, from left to right."""
    if isinstance(mask, (And, Or)):
        return leaves_of(mask.left) + leaves_of(mask.right)
    if isinstance(mask, Not):
        return leaves_of(mask.mask)
    return [mask] if isinstance(mask, Leaf) else []


def with_leaf(mask: Mask, leaf: Leaf, other: Mask) -> Mask:
    """The mask with another leaf in place of one."""
    if isinstance(mask, (And, Or)):
        return type(mask)(with_leaf(mask.left, leaf, other), with_leaf(mask.right, leaf, other))
    if isinstance(mask, Not):
        return Not(with_leaf(mask.mask, leaf, other))
    return other if mask == leaf else mask
