"""A condition on a case is read, never evaluated; a mistake is named with its column."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attnbench.errors import CaseError
from attnbench.problem import Case, Causal, SlidingWindow, Softcap
from attnbench.problem.condition import Condition

Make = Callable[..., Case]


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("q_len == 16", True),
        ("q_len == 1", False),
        ("q_len == 1 or k_len % 8 == 0", True),
        ("not q_len == 1 and batch <= 8", True),
        ("1 < q_len <= k_len", True),
        ("head_dim in (8, 64)", True),
        ("head_dim not in [8, 64]", False),
        ("q_len * 2 - 1 == k_len + 15", True),
        ("k_len // 5 == 3 and -1 < batch", True),
        ("mask == 'full' and 'causal' not in mask_kinds", True),
        ("dtype == 'fp32' and direction == 'fwd' and layout == 'bhsd'", True),
        ("scale == None and group == 1 and scores == ()", True),
        ("empty_rows", False),
    ],
)
def test_a_condition_holds_or_not(text: str, holds: bool, a_case: Make) -> None:
    assert Condition(text).holds(a_case()) is holds


@pytest.mark.parametrize("text", ["causal & window(4, 0)", "causal&window(4,0)", "causal  &  window(4, 0)"])
def test_masks_are_compared_as_masks(text: str, a_case: Make) -> None:
    case = a_case(mask=Causal() & SlidingWindow(4, 0))
    assert Condition(f"mask == '{text}'").holds(case)
    assert Condition(f"mask in ('full', '{text}')").holds(case)
    assert Condition("'window' in mask_kinds").holds(case)


def test_scores_are_named_by_their_kinds(a_case: Make) -> None:
    assert Condition("scores == ('softcap',)").holds(a_case(scores=(Softcap(5.0),)))


def test_the_first_clause_that_fails_is_named_with_its_values(a_case: Make) -> None:
    condition = Condition("batch <= 8 and q_len == 1 and k_len % 128 == 0")
    assert condition.unmet(a_case()) == "takes q_len == 1 only; q_len is 16"
    assert condition.unmet(a_case(q_len=1, k_len=256)) == ""


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("q_lne == 1", "column 1: no field 'q_lne'; did you mean 'q_len'"),
        ("q_len == 1 and head_dims == 64", "column 16: no field 'head_dims'; did you mean 'head_dim'"),
        ("q_len = 1", "column"),
        ("q_len ==", "column"),
        ("", "column"),
        ("__import__('os').system('true')", "column 1: Call is not taken"),
        ("q_len.bit_length", "column 1: Attribute is not taken"),
        ("[x for x in (1, 2)]", "ListComp is not taken"),
        ("(lambda: 1)()", "Call is not taken"),
        ("q_len ** 9 == 1", "Pow is not taken"),
        ("q_len / 2 == 1", "Div is not taken"),
        ("f'{q_len}' == '1'", "JoinedStr is not taken"),
        ("(q_len := 1)", "NamedExpr is not taken"),
        ("q_len == b'1'", "is not taken"),
        ("q_len if q_len else 1", "IfExp is not taken"),
    ],
)
def test_a_text_of_another_form_is_refused(text: str, words: str) -> None:
    with pytest.raises(CaseError, match="column") as error:
        Condition(text)
    assert words in str(error.value)


@pytest.mark.parametrize(
    "text", ["k_len % 0 == 1", "k_len // (q_len - 16) == 1", "mask < 3", "q_len + mask == 1"]
)
def test_what_cannot_be_computed_is_an_error_of_the_condition(text: str, a_case: Make) -> None:
    with pytest.raises(CaseError, match="cannot be computed"):
        Condition(text).holds(a_case())
