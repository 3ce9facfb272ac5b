"""The predicate and the spans of every mask agree with each other and with its definition as loops."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.problem.blockmap import FULL, PARTIAL
from attnbench.problem.grammar import LEAVES, MASK_KINDS, example_of, parse_mask
from attnbench.problem.lengths import Documents, Padding
from attnbench.problem.masks import Extent, Mask, Or
from attnbench.problem.primitives import Causal, Dilated, Full, GlobalTokens, PrefixLM, SlidingWindow
from attnbench.problem.spans import Ints, Spans
from attnbench.problem.tables import BlockSparse, Explicit
from tests.problem.mask_strategies import (
    MaskProblem,
    dense_from_predicate,
    dense_from_spans,
    examples,
    extents,
    mask_problems,
)


def by_loops(allowed, extent: Extent) -> np.ndarray:
    """allowed(b, h, i, j, p) over every pair: bool [B, H, Q, K]."""
    shape = (extent.batch, extent.heads, extent.q_len, extent.k_len)
    shift = extent.k_len - extent.q_len
    flat = [allowed(b, h, i, j, i + shift) for b, h, i, j in np.ndindex(shape)]
    return np.array(flat, dtype=bool).reshape(shape)


EXPLICIT = f"explicit([1,2,16,16], x{'c5f1' * 32})"
DOCUMENT = [0, 0, 2, 2, 2, None, None]  # documents(2, 0, 3) on 7 tokens
LAYOUT = [[[1, 0, 0], [0, 1, 1], [1, 1, 0]], [[0, 1, 0], [1, 0, 0], [1, 1, 1]]]
TABLE = np.random.default_rng(0).random((2, 1, 5, 7)) < 0.5
DEFINITIONS = {
    "full": (Full(), lambda b, h, i, j, p: True),
    "causal": (Causal(), lambda b, h, i, j, p: j <= p),
    "causal.top_left": (Causal("top_left"), lambda b, h, i, j, p: j <= i),
    "window": (SlidingWindow(2, 1), lambda b, h, i, j, p: p - 2 <= j <= p + 1),
    "window left": (SlidingWindow(2, None), lambda b, h, i, j, p: p - 2 <= j),
    "window right": (SlidingWindow(None, 1), lambda b, h, i, j, p: j <= p + 1),
    "window unlimited": (SlidingWindow(None, float("inf")), lambda b, h, i, j, p: True),
    "padding": (Padding([4, 0]), lambda b, h, i, j, p: j < (4, 0)[b]),
    "padding left": (Padding([4, 0], "left"), lambda b, h, i, j, p: j >= 7 - (4, 0)[b]),
    "prefix": (PrefixLM(3), lambda b, h, i, j, p: j < 3 or j <= p),
    "global": (GlobalTokens(2), lambda b, h, i, j, p: j < 2 or 0 <= p < 2),
    "dilated": (Dilated(3), lambda b, h, i, j, p: (p - j) % 3 == 0),
    "block_sparse": (BlockSparse(LAYOUT, 3), lambda b, h, i, j, p: LAYOUT[h][i // 3][j // 3] == 1),
    "block_sparse shared": (BlockSparse(LAYOUT[1], 3), lambda b, h, i, j, p: LAYOUT[1][i // 3][j // 3] == 1),
    "and": (Causal() & Dilated(2), lambda b, h, i, j, p: j <= p and (p - j) % 2 == 0),
    "or": (Causal() | PrefixLM(5), lambda b, h, i, j, p: j <= p or j < 5),
    "not": (~SlidingWindow(1, 1), lambda b, h, i, j, p: abs(p - j) > 1),
}


@pytest.mark.parametrize("q_len", [5, 7, 9])
@pytest.mark.parametrize("name", DEFINITIONS)
def test_a_mask_allows_what_its_definition_says(name: str, q_len: int) -> None:
    mask, allowed = DEFINITIONS[name]
    extent = Extent(2, 2, q_len, 7)
    expected = by_loops(allowed, extent)
    np.testing.assert_array_equal(dense_from_predicate(mask, extent), expected)
    np.testing.assert_array_equal(dense_from_spans(mask, extent), expected)


def test_every_kind_has_a_definition_written_as_loops() -> None:
    kinds = frozenset().union(*(mask.kinds for mask, _ in DEFINITIONS.values()))
    assert kinds | {"documents", "explicit"} == MASK_KINDS  # those two follow


@pytest.mark.parametrize("lengths", [[2, 0, 3], [[2, 0, 3], [0, 1, 6]]])
def test_documents_see_themselves_and_tokens_past_them_see_nothing(lengths: list) -> None:
    extent = Extent(2, 1, 7, 7)
    owners = [DOCUMENT, DOCUMENT if lengths[0] == 2 else [1] + [2] * 6]
    expected = by_loops(lambda b, h, i, j, p: owners[b][i] == owners[b][j] is not None, extent)
    np.testing.assert_array_equal(dense_from_predicate(Documents(lengths), extent), expected)
    np.testing.assert_array_equal(dense_from_spans(Documents(lengths), extent), expected)


@pytest.mark.parametrize("form", [torch.from_numpy, np.asarray, np.ndarray.tolist])
def test_an_explicit_mask_is_its_tensor(form) -> None:
    mask, extent = Explicit(form(TABLE)), Extent(2, 3, 5, 7)
    np.testing.assert_array_equal(dense_from_predicate(mask, extent), np.broadcast_to(TABLE, (2, 3, 5, 7)))
    np.testing.assert_array_equal(dense_from_spans(mask, extent), np.broadcast_to(TABLE, (2, 3, 5, 7)))
    assert mask == Explicit(torch.from_numpy(TABLE))
    assert mask.materialize(2, 3, 5, 7).shape == (2, 1, 5, 7)


@given(mask_problems())
@settings(max_examples=150, deadline=None)
def test_predicate_and_spans_agree(case: MaskProblem) -> None:
    case.mask.check(case.extent)
    np.testing.assert_array_equal(
        dense_from_predicate(case.mask, case.extent), dense_from_spans(case.mask, case.extent)
    )


@pytest.mark.parametrize("name", LEAVES)
@given(extent=extents())
@settings(max_examples=30, deadline=None)
def test_predicate_and_spans_of_a_leafs_examples_agree(name: str, extent: Extent) -> None:
    for mask in examples(name, extent):
        np.testing.assert_array_equal(dense_from_predicate(mask, extent), dense_from_spans(mask, extent))


@given(mask_problems())
@settings(max_examples=100, deadline=None)
def test_spans_are_disjoint_rising_within_the_keys_and_at_most_max_spans(case: MaskProblem) -> None:
    rows = np.arange(case.extent.q_len, dtype=np.int64)
    starts, ends = case.mask.spans(case.extent, 0, 0, rows)
    assert starts.dtype == ends.dtype == np.int64
    assert starts.shape == ends.shape == (rows.size, starts.shape[1])
    assert starts.shape[1] <= case.mask.max_spans(case.extent)
    assert ((starts >= 0) & (starts <= ends) & (ends <= case.extent.k_len)).all()
    assert (starts[:, 1:] >= ends[:, :-1]).all()


@given(mask_problems(), st.data())
@settings(max_examples=50, deadline=None)
def test_spans_of_some_rows_are_those_of_all_rows(case: MaskProblem, data: st.DataObject) -> None:
    picked = data.draw(st.lists(st.integers(0, case.extent.q_len - 1), min_size=1, max_size=4))
    rows = np.array(picked, dtype=np.int64)
    starts, ends = case.mask.spans(case.extent, 0, 0, rows)
    expected = dense_from_spans(case.mask, case.extent)[0, 0, rows].sum(axis=1)
    np.testing.assert_array_equal((ends - starts).sum(axis=1), expected)


@given(mask_problems())
@settings(max_examples=100, deadline=None)
def test_a_mask_varies_over_batch_and_heads_only_where_it_says_so(case: MaskProblem) -> None:
    table = dense_from_spans(case.mask, case.extent)
    assert case.mask.varies_over_batch or (table == table[:1]).all()
    assert case.mask.varies_over_heads or (table == table[:, :1]).all()
    for b in range(1, case.extent.batch):
        if case.mask.varies_over_batch and case.mask.batch_key(b) == case.mask.batch_key(0):
            np.testing.assert_array_equal(table[b], table[0])


@given(mask_problems())
@settings(max_examples=100, deadline=None)
def test_the_simplified_mask_is_equivalent_and_no_longer(case: MaskProblem) -> None:
    simple = case.mask.simplified()
    np.testing.assert_array_equal(
        dense_from_predicate(simple, case.extent), dense_from_predicate(case.mask, case.extent)
    )
    assert str(simple).count("&") + str(simple).count("|") <= str(case.mask).count("&") + str(
        case.mask
    ).count("|")


@pytest.mark.parametrize(
    ("text", "simple"),
    [
        ("causal & full", "causal"),
        ("~~(full & window(3, 0))", "window(3, 0)"),
        ("window(inf, inf)", "full"),
        ("window(inf, 0)", "causal"),
        ("prefix(0) | ~full", "causal"),
        ("dilated(1) | causal", "full"),
        ("global(0)", "~full"),
        ("causal & ~full", "~full"),
        ("causal & causal", "causal"),
        ("causal & window(3, 0)", "causal & window(3, 0)"),
    ],
)
def test_an_obvious_part_is_dropped(text: str, simple: str) -> None:
    assert parse_mask(text).simplified() == parse_mask(simple)


@dataclass(frozen=True)
class PredicateOffByOne(SlidingWindow):
    def predicate(self, extent: Extent, device: torch.device | str = "cpu"):
        right = SlidingWindow(self.left, self.right).predicate(extent, device)
        return lambda b, h, q, k: right(b, h, q, k + 1)


@dataclass(frozen=True)
class SpansOffByOne(SlidingWindow):
    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        starts, ends = super().spans(extent, b, h, rows)
        return starts, np.maximum(starts, ends - 1)


@dataclass(frozen=True)
class SpansTopLeft(Causal):
    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        return Causal("top_left").spans(extent, b, h, rows)


@pytest.mark.parametrize("wrong", [PredicateOffByOne(3, 0), SpansOffByOne(3, 0), SpansTopLeft()])
def test_a_bug_in_either_definition_is_found(wrong: Mask) -> None:
    @given(extents())
    @settings(max_examples=50, deadline=None, database=None)
    def definitions_agree(extent: Extent) -> None:
        joined = GlobalTokens(1) | wrong
        np.testing.assert_array_equal(dense_from_predicate(joined, extent), dense_from_spans(joined, extent))

    with pytest.raises(AssertionError):
        definitions_agree()


def test_masks_compare_and_hash_by_structure() -> None:
    assert Padding([3, 4]) == Padding(torch.tensor([3, 4])) == Padding(np.array([3, 4]))
    assert hash(Documents([[1, 2]])) == hash(Documents(((1, 2),)))
    assert Documents([[1, 2]]) != Documents([1, 2])
    assert Explicit([[1, 0]]) == Explicit(np.array([[True, False]])) != Explicit([[1], [0]])
    assert SlidingWindow(None, 0) == SlidingWindow(float("inf"), 0)
    assert Causal() & Full() != Full() & Causal()
    assert len({BlockSparse([[1, 0]], 4), BlockSparse(torch.tensor([[1, 0]]), 4)}) == 1


@given(mask_problems())
@settings(max_examples=30, deadline=None)
def test_a_mask_travels_to_another_process(case: MaskProblem) -> None:
    dense_from_spans(case.mask, case.extent)
    assert pickle.loads(pickle.dumps(case.mask)) == case.mask


def test_kinds_are_the_names_of_the_leaves() -> None:
    mask = Causal() & SlidingWindow(3, 0) | ~(Causal("top_left") & Padding([3]))
    assert mask.kinds == {"causal", "window", "causal(top_left)", "padding"}
    assert Or(Causal(), Or(Full(), Dilated(2))).terms == (Causal(), Full(), Dilated(2))


@given(mask_problems())
@settings(max_examples=100, deadline=None)
def test_every_kind_that_a_mask_can_have_is_in_the_list(case: MaskProblem) -> None:
    assert case.mask.kinds <= MASK_KINDS


@pytest.mark.parametrize("name", LEAVES)
@pytest.mark.parametrize("lengths", [(1, 1), (64, 64), (257, 257)])
def test_a_leaf_gives_an_example_of_each_of_its_kinds(name: str, lengths: tuple[int, int]) -> None:
    extent = Extent(3, 4, *lengths)
    masks = LEAVES[name].examples(extent)
    assert len({mask.kinds for mask in masks}) == len(masks) >= 1
    for mask in masks:
        mask.check(extent)
        assert type(mask) is LEAVES[name]
        assert [mask] == [example_of(kind, extent) for kind in mask.kinds]
        assert parse_mask(f"~{mask} & full") == ~mask & Full()
        assert re.fullmatch(r"[A-Za-z0-9_.:+-]+", mask.label)


@pytest.mark.parametrize(
    "text", ["causal & window(3, 2)", "documents([9, 3], [12, 4]) | global(2)", "~padding(3, 9)"]
)
@pytest.mark.parametrize(
    "tail",
    [
        "full",
        "dilated(3)",
        "block_sparse([[[1,0],[1,1]],[[0,1],[1,1]]], 8)",
        EXPLICIT,
    ],
)
def test_flex_attention_takes_the_predicate(text: str, tail: str) -> None:
    from torch.nn.attention.flex_attention import create_block_mask, create_mask

    mask, extent = parse_mask(f"({text}) & {tail}"), Extent(2, 2, 16, 16)
    from_flex = create_mask(mask.predicate(extent), 2, 2, 16, 16, device="cpu")
    assert torch.equal(from_flex, mask.materialize(2, 2, 16, 16).expand(2, 2, 16, 16))
    theirs = create_block_mask(mask.predicate(extent), 2, 2, 16, 16, device="cpu", BLOCK_SIZE=(4, 8))
    ours = np.broadcast_to(mask.block_map(extent, 4, 8).kinds, (2, 2, 4, 2))
    np.testing.assert_array_equal(theirs.kv_num_blocks.numpy(), (ours == PARTIAL).sum(axis=3))
    assert theirs.full_kv_num_blocks is not None
    np.testing.assert_array_equal(theirs.full_kv_num_blocks.numpy(), (ours == FULL).sum(axis=3))
