"""Labels read aloud, hold only safe characters, and differ between masks."""

from __future__ import annotations

import re

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnbench.problem.lengths import Documents, Padding
from attnbench.problem.masks import Mask
from attnbench.problem.primitives import Causal, Dilated, Full, SlidingWindow
from attnbench.problem.tables import BlockSparse
from tests.problem.mask_strategies import expressions, extents


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_different_masks_have_different_labels_of_safe_characters(data: st.DataObject) -> None:
    extent = data.draw(extents())
    one, two = data.draw(expressions(extent)), data.draw(expressions(extent))
    assert re.fullmatch(r"[A-Za-z0-9_.:+-]+", one.label)
    assume(one != two)
    assert one.label != two.label


def test_groupings_that_read_alike_have_different_labels() -> None:
    a, b, c = Causal(), Dilated(2), SlidingWindow(1, 0)
    grouped = [
        a & b & c,
        a & (b & c),
        a | b | c,
        a | (b | c),
        a & b | c,
        a & (b | c),
        ~a & b,
        ~(a & b),
        ~(~a),
        a,
    ]
    assert len({m.label for m in grouped}) == len(grouped)


@pytest.mark.parametrize(
    ("mask", "label"),
    [
        (Causal("top_left"), "causal.top_left"),
        (Causal() & SlidingWindow(128, 0), "causal+window128.0"),
        (SlidingWindow(None, 0) | Full(), "windowinf.0.or.full"),
        (~Padding([5, 9], "left"), "not.padding5.9.left"),
        (Documents([3, 4, 5]), "documents3.4.5"),
        (~(Full() & Full()), "not._full+full_"),
    ],
)
def test_labels_read_aloud(mask: Mask, label: str) -> None:
    assert mask.label == label


def test_a_long_table_is_a_short_name_and_a_hash() -> None:
    assert re.fullmatch(r"documents-[0-9a-f]{8}", Documents([1, 2, 3, 4, 5]).label)
    assert re.fullmatch(r"block_sparse64-[0-9a-f]{8}", BlockSparse([[1]], 64).label)
