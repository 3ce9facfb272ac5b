"""A mask's text reads back as the mask, and the error of a wrong text has its column and what to do."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.errors import MaskError, ScoreError
from attnbench.problem.grammar import LEAVES, parse_call, parse_mask, split_outside_brackets
from attnbench.problem.lengths import Documents, Padding
from attnbench.problem.masks import And, Mask, Not, Or
from attnbench.problem.primitives import Causal, Dilated, Full, GlobalTokens, PrefixLM, SlidingWindow
from attnbench.problem.tables import BlockSparse, Explicit
from tests.problem.mask_strategies import MaskProblem, mask_problems


@given(mask_problems())
@settings(max_examples=300, deadline=None)
def test_a_text_reads_back_as_the_same_mask(case: MaskProblem) -> None:
    assert parse_mask(str(case.mask)) == case.mask


@pytest.mark.parametrize(
    ("text", "mask"),
    [
        ("full", Full()),
        ("causal", Causal()),
        ("causal()", Causal()),
        ("causal(top_left)", Causal("top_left")),
        ("window(127, 0)", SlidingWindow(127, 0)),
        ("window(inf,0)", SlidingWindow(None, 0)),
        ("padding(3, 5)", Padding([3, 5])),
        ("padding([3,5])", Padding([3, 5])),
        ("padding(3, 5, left)", Padding([3, 5], "left")),
        ("padding([3,5],left)", Padding([3, 5], "left")),
        ("documents(3,4,5)", Documents([3, 4, 5])),
        ("documents([3,4],[5,2])", Documents([[3, 4], [5, 2]])),
        ("documents([3,4])", Documents([3, 4])),
        ("documents([[3,4]])", Documents([[3, 4]])),
        ("prefix(16)", PrefixLM(16)),
        (" global ( 4 ) ", GlobalTokens(4)),
        ("block_sparse([[1,0],[1,1]], 64)", BlockSparse([[1, 0], [1, 1]], 64)),
        ("block_sparse([[[1,0]],[[1,1]]], 64)", BlockSparse([[[1, 0]], [[1, 1]]], 64)),
        ("dilated(2)", Dilated(2)),
        ("explicit([[1,0],[1,1]])", Explicit([[1, 0], [1, 1]])),
        ("explicit([1,1,2,2], xb0)", Explicit([[1, 0], [1, 1]])),
        ("explicit([2,2], xB0)", Explicit([[1, 0], [1, 1]])),
    ],
)
def test_every_mask_has_a_text(text: str, mask: Mask) -> None:
    assert parse_mask(text) == mask


def test_not_binds_before_and_before_or_and_chains_group_to_the_left() -> None:
    a, b, c = Causal(), Dilated(2), Full()
    texts = {
        "causal & dilated(2) | full": Or(And(a, b), c),
        "causal | dilated(2) & full": Or(a, And(b, c)),
        "~causal & full": And(Not(a), c),
        "~(causal & full)": Not(And(a, c)),
        "causal & dilated(2) & full": And(And(a, b), c),
        "causal & (dilated(2) & full)": And(a, And(b, c)),
        "causal | (dilated(2) | full)": Or(a, Or(b, c)),
        "~~causal": Not(Not(a)),
    }
    for text, mask in texts.items():
        assert parse_mask(text) == mask
        assert str(mask) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("causl", "unknown mask 'causl' at column 1; did you mean 'causal'?"),
        ("full & windw(3, 0)", "unknown mask 'windw' at column 8; did you mean 'window'?"),
        ("xyz", f"unknown mask 'xyz' at column 1; the masks are {', '.join(LEAVES)}"),
        ("not causal", "unknown mask 'not' at column 1; did you mean '~'?"),
        ("causal and full", "expected '&', '|' or the end at column 8, found 'and'; write '&' for it"),
        ("causal full", "expected '&', '|' or the end at column 8, found 'full'"),
        ("", "expected a mask such as 'causal' at column 1, found the end"),
        ("causal &", "expected a mask such as 'causal' at column 9, found the end"),
        ("(causal", "expected ')' to close the group at column 8, found the end"),
        ("causal)", "expected '&', '|' or the end at column 7, found ')'"),
        ("window(3, 4", "expected ',' or ')' at column 12, found the end"),
        ("window(3 4)", "expected ',' or ')' at column 10, found '4'"),
        ("window(, 4)", "expected a number, a word or a list at column 8, found ','"),
        ("causal $ full", "unexpected '$' at column 8; remove it"),
        ("!causal", "unexpected '!' at column 1; write '~' for it"),
    ],
)
def test_a_wrong_text_is_an_error_with_its_column(text: str, message: str) -> None:
    with pytest.raises(MaskError, match=f"^{re.escape(message)}$"):
        parse_mask(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("full & window(3)", "wrong arguments for 'window' at column 8; write window(left, right)"),
        ("causal(bottom)", "aligned bottom_right or top_left, not 'bottom' (in 'causal' at column 1"),
        ("window(-1, 0)", "not -1 (in 'window' at column 1"),
        ("window(2.5, 0)", "a whole number, not 2.5"),
        ("window(9999999999999999999, 0)", "number too large at column 8; write inf"),
        ("padding()", "(in 'padding' at column 1"),
        ("padding(left)", "at least one number"),
        ("padding(3, left, 4)", "a whole number, not 'left'"),
        ("documents(3, [4])", "not both"),
        ("global()", "wrong arguments for 'global' at column 1; write global(n)"),
        ("full(1)", "wrong arguments for 'full' at column 1"),
        ("explicit([2,2], xff)", "4 bits; those after them must be 0"),
        ("explicit([2,2], x1)", "takes x and 2 hex digits"),
        ("explicit([2,2], 7)", "takes x and 2 hex digits"),
        ("explicit([2,2,2,2,2], x00000000)", "dimensions"),
        ("block_sparse([[1],[1,0]], 3)", "different lengths"),
        ("(" * 5000 + "causal" + ")" * 5000, "more than 64 levels at column 66"),
        ("~" * 5000 + "causal", "more than 64 levels"),
        ("documents(" + "[" * 5000, "brackets within more than"),
        ("causal" + " & causal" * 5000, "at most 200 operators"),
    ],
)
def test_wrong_arguments_and_depths_say_what_to_write(text: str, says: str) -> None:
    with pytest.raises(MaskError) as caught:
        parse_mask(text)
    assert says in str(caught.value)


@given(st.text(alphabet="causl(dilted)windo[0123456789]&|~, infx.-_\n\t\"'é", max_size=40))
@settings(max_examples=300, deadline=None)
def test_any_text_is_a_mask_or_a_mask_error(text: str) -> None:
    try:
        mask = parse_mask(text)
    except MaskError:
        return
    assert parse_mask(str(mask)) == mask


def test_a_value_that_is_no_text_is_a_mask_error() -> None:
    with pytest.raises(MaskError, match="expected a text, not 3"):
        parse_mask(3)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "call"),
    [
        ("alibi", ("alibi", ())),
        ("softcap(50.0)", ("softcap", (50.0,))),
        ("softcap(-1.5e-3)", ("softcap", (-0.0015,))),
        ("bias(hqk)", ("bias", ("hqk",))),
        ("relative(t5,32, 128,bidirectional)", ("relative", ("t5", 32, 128, "bidirectional"))),
        ("f([1, [2, x]], inf)", ("f", ((1, (2, "x")), math.inf))),
    ],
)
def test_a_call_is_a_name_and_its_arguments(text: str, call: tuple) -> None:
    assert parse_call(text) == call


@pytest.mark.parametrize("text", ["", "3", "f(1", "f(1))", "f(1 2)", "f + 1", "f(g(1))"])
def test_a_wrong_call_raises_the_requested_error(text: str) -> None:
    with pytest.raises(ScoreError, match="column"):
        parse_call(text)
    with pytest.raises(MaskError, match="column"):
        parse_call(text, MaskError)


def test_lists_split_at_commas_outside_brackets() -> None:
    text = "causal & window(3, 0), documents([3,4],[5,2]) ,full,"
    assert split_outside_brackets(text) == ["causal & window(3, 0)", "documents([3,4],[5,2])", "full"]
    assert split_outside_brackets("") == []
    assert split_outside_brackets("a;b(c;d)", sep=";") == ["a", "b(c;d)"]
    for text in ("window(3", "window)3("):
        with pytest.raises(MaskError, match="close"):
            split_outside_brackets(text)
