"""An invalid mask, or one that does not fit the problem, raises an error with what, where and what to do."""

from __future__ import annotations

import re

import pytest
import torch

from attnbench.errors import MaskError
from attnbench.problem.lengths import Documents, Padding
from attnbench.problem.masks import And, Extent, Mask, Not
from attnbench.problem.primitives import Causal, Dilated, GlobalTokens, PrefixLM, SlidingWindow
from attnbench.problem.tables import BlockSparse, Explicit


@pytest.mark.parametrize(
    ("mask", "extent", "says"),
    [
        (Documents([2, 2]), Extent(1, 1, 4, 5), "q_len == k_len, not 4 and 5"),
        (Documents([2, 3]), Extent(1, 1, 4, 4), "add up to 5 tokens but q_len is 4"),
        (Documents([[2], [3]]), Extent(3, 1, 4, 4), "2 lists but batch is 3"),
        (Documents([[4]]), Extent(2, 1, 4, 4), "1 lists but batch is 2"),
        (Padding([2]), Extent(2, 1, 4, 4), "1 lengths but batch is 2"),
        (Padding([2, 5]), Extent(2, 1, 4, 4), "batch row 1 keeps 5 keys but k_len is 4"),
        (BlockSparse([[1]], 3), Extent(1, 1, 3, 4), "3 tokens but k_len is 4"),
        (BlockSparse([[1, 1]], 3), Extent(1, 1, 4, 4), "3 tokens but q_len is 4"),
        (BlockSparse([[[1]], [[0]]], 4), Extent(1, 3, 4, 4), "2 layouts but there are 3 query heads"),
        (
            Explicit([[1, 0]]),
            Extent(1, 1, 2, 2),
            "shape [1, 1, 1, 2] but [batch, heads, q_len, k_len] is [1, 1, 2, 2]",
        ),
        (Explicit([[[1]], [[0]]]), Extent(1, 1, 1, 1), "shape [1, 2, 1, 1]"),
    ],
)
def test_a_mask_that_does_not_fit_says_what_and_where(mask: Mask, extent: Extent, says: str) -> None:
    for wrapped in (mask, Causal() & ~mask):
        for use in (wrapped.check, wrapped.pairs, lambda e, m=wrapped: m.block_map(e, 2, 2)):
            with pytest.raises(MaskError, match=re.escape(says)):
                use(extent)
    with pytest.raises(MaskError, match=re.escape(says)):
        mask.materialize(extent.batch, extent.heads, extent.q_len, extent.k_len)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: SlidingWindow(-1, 0), "left side is between 0"),
        (lambda: SlidingWindow(0, 2.5), "right side is a whole number, not 2.5"),
        (lambda: Causal("left"), "bottom_right or top_left, not 'left'"),  # type: ignore[arg-type]
        (lambda: Padding([]), "at least one number"),
        (lambda: Padding([3], "up"), "right or left side"),  # type: ignore[arg-type]
        (lambda: Documents([1, [2]]), "not both"),  # type: ignore[arg-type]
        (lambda: Dilated(0), "between 1"),
        (lambda: PrefixLM(True), "a whole number, not True"),
        (lambda: GlobalTokens(1 << 40), "between 0 and 2^30"),
        (lambda: BlockSparse([[1, 0], [1]], 2), "different lengths"),
        (lambda: BlockSparse([[2]], 2), "True (may attend)"),
        (lambda: Explicit(torch.zeros(2, 2)), "compare a float mask with 0"),
        (lambda: Explicit([1, 0]), "has shape [2]"),
        (lambda: And(Causal(), "full"), "& joins two masks, not 'full'"),  # type: ignore[arg-type]
        (lambda: Not("full"), "~ negates a mask, not 'full'"),  # type: ignore[arg-type]
        (lambda: Extent(1, 1, 0, 4), "q_len is between 1"),
    ],
)
def test_an_invalid_mask_says_why(make, says: str) -> None:
    with pytest.raises(MaskError, match=re.escape(says)):
        make()
