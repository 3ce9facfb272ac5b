"""What a library is passed means the mask of the case, read back by its documentation, without the library.

Backends that run on this CPU (naive, per_head, torch_mha, flex, triton, ...) are judged on their answers by the
conformance tests.
"""

from __future__ import annotations

import numpy as np
import pytest
from attnbench_backends import _lowering_xformers as xformers
from hypothesis import given, settings
from hypothesis import strategies as st

from attnbench.problem import ALiBi, Case
from tests.lowering.cases import BACKENDS, CASES, NESTED, problem, wanted


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("fields", CASES, ids=str)
def test_what_the_library_is_passed_is_the_mask(name: str, fields: tuple[str, int, int, int]) -> None:
    lower, read = BACKENDS[name]
    case = problem(*fields)
    if name not in CASES[fields]:
        with pytest.raises(NotImplementedError):
            lower(case)
        return
    np.testing.assert_array_equal(read(case, lower(case)), wanted(case))


@pytest.mark.parametrize("name", BACKENDS)
def test_the_backward_is_passed_the_same_mask_or_refused(name: str) -> None:
    lower, read = BACKENDS[name]
    took = 0
    for fields in CASES:
        case = problem(*fields, direction="fwd_bwd")
        try:
            request = lower(case)
        except NotImplementedError:
            continue
        took += 1
        np.testing.assert_array_equal(read(case, request), wanted(case))
    assert took >= (5 if name in NESTED else 6)


def leaves(batch: int, q_len: int, k_len: int) -> st.SearchStrategy[str]:
    few = st.integers(0, 9)
    lengths = st.lists(st.integers(0, k_len), min_size=batch, max_size=batch)
    kinds = [
        st.sampled_from(["full", "causal", "causal(top_left)", "dilated(2)"]),
        st.builds("window({}, {})".format, few, st.one_of(few, st.just("inf"))),
        st.builds("window(inf, {})".format, few),
        lengths.map(lambda n: f"padding({', '.join(map(str, n))})"),
        st.builds("prefix({})".format, few),
    ]
    if q_len == k_len:
        cuts = st.lists(st.integers(0, q_len), max_size=3).map(sorted)
        kinds.append(
            cuts.map(lambda c: f"documents({', '.join(map(str, np.diff([0, *c]) if c else [q_len]))})")
        )
    return st.one_of(kinds)


@st.composite
def problems(draw: st.DrawFn) -> Case:
    batch, q_len = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    k_len = draw(st.one_of(st.just(q_len), st.integers(1, 9)))
    leaf = leaves(batch, q_len, k_len)
    text = draw(leaf)
    for _ in range(draw(st.integers(0, 2))):
        # "and" most often: what is not a conjunction is dense for every library.
        text = (
            f"{text} {draw(st.sampled_from('&&&|'))} {draw(st.sampled_from(['', '', '', '~']))}{draw(leaf)}"
        )
    direction = draw(st.sampled_from(["fwd", "fwd_bwd"]))
    return problem(text, q_len, k_len, batch, direction=direction)


@pytest.mark.parametrize("name", BACKENDS)
@settings(deadline=None, max_examples=150)
@given(case=problems())
def test_any_mask_of_the_algebra_is_passed_as_it_is_or_refused(name: str, case: Case) -> None:
    lower, read = BACKENDS[name]
    try:
        request = lower(case)
    except NotImplementedError:
        return
    np.testing.assert_array_equal(read(case, request), wanted(case), err_msg=f"{case.mask}: {request}")


def test_alibi_is_refused_where_the_library_would_count_from_another_key() -> None:
    lower = BACKENDS["flash_attn"][0]
    assert "alibi_slopes" in lower(problem("causal", 5, 8, 1, scores=(ALiBi(),)))[1]
    assert "alibi_slopes" in lower(problem("documents(3, 5)", 8, 8, 1, scores=(ALiBi(),)))[1]
    with pytest.raises(NotImplementedError, match="ALiBi"):
        lower(problem("padding(5, 8)", 8, 8, 2, scores=(ALiBi(),)))


def test_no_class_is_chosen_that_the_operator_does_not_take() -> None:
    for operator, (forward, both) in xformers.OPERATORS.items():
        for fields in CASES:
            for direction, takes in (("fwd", forward), ("fwd_bwd", both)):
                try:
                    call = xformers.lowered(problem(*fields, direction=direction), operator)
                except NotImplementedError:
                    continue
                assert call.bias in takes
