"""Hypothesis strategies: small extents, and mask expressions that fit them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

from attnbench.errors import MaskError
from attnbench.problem.grammar import LEAVES
from attnbench.problem.lengths import Documents, Padding
from attnbench.problem.masks import And, Extent, Mask, Not, Or
from attnbench.problem.primitives import Causal, Dilated, GlobalTokens, PrefixLM, SlidingWindow
from attnbench.problem.tables import BlockSparse, Explicit

LONGEST = 24


@dataclass(frozen=True)
class MaskProblem:
    """A mask and an extent that it fits."""

    mask: Mask
    extent: Extent


@st.composite
def extents(draw: st.DrawFn) -> Extent:
    q_len = draw(st.integers(1, LONGEST))
    k_len = draw(st.one_of(st.just(q_len), st.integers(1, LONGEST)))
    return Extent(draw(st.integers(1, 3)), draw(st.integers(1, 3)), q_len, k_len)


def reaches() -> st.SearchStrategy[int | None]:
    return st.one_of(st.none(), st.integers(0, LONGEST + 4))


@st.composite
def document_lengths(draw: st.DrawFn, tokens: int) -> list[int]:
    lengths = [draw(st.integers(0, tokens))]
    while sum(lengths) < tokens and draw(st.booleans()):
        lengths.append(draw(st.integers(0, tokens - sum(lengths))))
    return lengths


@st.composite
def documents(draw: st.DrawFn, extent: Extent) -> Mask:
    if draw(st.booleans()):
        return Documents(draw(document_lengths(extent.q_len)))
    return Documents([draw(document_lengths(extent.q_len)) for _ in range(extent.batch)])


@st.composite
def layouts(draw: st.DrawFn, extent: Extent) -> Mask:
    block = draw(st.integers(1, LONGEST))
    spare = draw(st.integers(0, 1))
    shape = (-(-extent.q_len // block) + spare, -(-extent.k_len // block) + spare)
    heads = draw(st.sampled_from([(), (extent.heads,)]))
    return BlockSparse(draw(bit_arrays((*heads, *shape))), block)


@st.composite
def bit_arrays(draw: st.DrawFn, shape: tuple[int, ...]) -> Any:
    density = draw(st.sampled_from([0.1, 0.5, 0.9]))
    return np.random.default_rng(draw(st.integers(0, 1 << 16))).random(shape) < density


@st.composite
def explicits(draw: st.DrawFn, extent: Extent) -> Mask:
    batch, heads = draw(st.sampled_from([1, extent.batch])), draw(st.sampled_from([1, extent.heads]))
    return Explicit(draw(bit_arrays((batch, heads, extent.q_len, extent.k_len))))


def leaves(extent: Extent) -> st.SearchStrategy[Mask]:
    """Every leaf of the grammar that fits the extent, with parameters of its own or else as its examples."""
    lengths = st.lists(st.integers(0, extent.k_len), min_size=extent.batch, max_size=extent.batch)
    drawn = {
        "causal": st.sampled_from([Causal(), Causal("top_left")]),
        "window": st.builds(SlidingWindow, reaches(), reaches()),
        "padding": st.builds(Padding, lengths, st.sampled_from(["right", "left"])),
        "prefix": st.builds(PrefixLM, st.integers(0, LONGEST + 2)),
        "global": st.builds(GlobalTokens, st.integers(0, LONGEST + 2)),
        "dilated": st.builds(Dilated, st.integers(1, 9)),
        "block_sparse": layouts(extent),
        "explicit": explicits(extent),
        "documents": documents(extent),
    }
    by_name = {name: examples(name, extent) for name in LEAVES}
    return st.one_of(*(drawn.get(name, st.sampled_from(masks)) for name, masks in by_name.items() if masks))


def examples(name: str, extent: Extent) -> list[Mask]:
    """The examples of a leaf that fit the extent."""
    return [mask for mask in LEAVES[name].examples(extent) if fits(mask, extent)]


def fits(mask: Mask, extent: Extent) -> bool:
    try:
        mask.check(extent)
    except MaskError:
        return False
    return True


def expressions(extent: Extent) -> st.SearchStrategy[Mask]:
    def combined(inner: st.SearchStrategy[Mask]) -> st.SearchStrategy[Mask]:
        return st.one_of(st.builds(And, inner, inner), st.builds(Or, inner, inner), st.builds(Not, inner))

    return st.recursive(leaves(extent), combined, max_leaves=5)


@st.composite
def mask_problems(draw: st.DrawFn) -> MaskProblem:
    extent = draw(extents())
    return MaskProblem(draw(expressions(extent)), extent)


def dense_from_predicate(mask: Mask, extent: Extent) -> np.ndarray:
    """The mask by its predicate: bool [B, H, Q, K]."""
    table = mask.materialize(extent.batch, extent.heads, extent.q_len, extent.k_len)
    return table.expand(extent.batch, extent.heads, extent.q_len, extent.k_len).numpy()


def dense_from_spans(mask: Mask, extent: Extent) -> np.ndarray:
    """The mask by its spans, painted one range at a time: bool [B, H, Q, K]."""
    table = np.zeros((extent.batch, extent.heads, extent.q_len, extent.k_len), dtype=bool)
    rows = np.arange(extent.q_len, dtype=np.int64)
    for b in range(extent.batch):
        for h in range(extent.heads):
            starts, ends = mask.spans(extent, b, h, rows)
            for i, j in zip(*np.nonzero(ends > starts), strict=True):
                table[b, h, i, starts[i, j] : ends[i, j]] = True
    return table
