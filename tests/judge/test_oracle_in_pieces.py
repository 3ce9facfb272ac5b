"""The oracle's answer is the same in pieces, at chosen rows and columns, in empty rows, under the caller's modes."""

from __future__ import annotations

import math

import pytest
import torch

from attnbench.judge import oracle
from attnbench.judge.oracle import exact_attention
from attnbench.judge.scores import full_precision
from attnbench.problem import Causal, Sink, Softcap
from tests.judge.oracle_problems import PROBLEMS, a_problem, differing, named


@pytest.mark.parametrize("scores_at_once", [1, 7, 40])
def test_the_pieces_in_which_it_is_computed_make_no_difference(
    monkeypatch: pytest.MonkeyPatch, scores_at_once: int
) -> None:
    inputs = PROBLEMS["all of them"]()
    whole = named(exact_attention(inputs))
    monkeypatch.setattr(oracle, "SCORES_AT_ONCE", scores_at_once)
    assert differing(named(exact_attention(inputs)), whole) == []


def test_chosen_rows_and_columns_are_those_of_the_whole_answer() -> None:
    inputs = a_problem(Causal(), (Softcap(2.0),), q_len=9, k_len=8)
    whole, rows, columns = exact_attention(inputs), torch.tensor([0, 3, 8]), torch.tensor([1, 7])
    some = exact_attention(inputs, rows, columns)
    assert whole.dq is not None
    assert whole.dk is not None
    assert whole.dv is not None
    wanted = {"out": whole.out[:, :, rows], "lse": whole.lse[:, :, rows], "dq": whole.dq[:, :, rows]}
    wanted |= {"dk": whole.dk[:, :, columns], "dv": whole.dv[:, :, columns]}
    assert differing(named(some), wanted) == []


def test_a_row_without_a_key_gives_zeros_and_an_lse_of_minus_infinity_or_the_sink() -> None:
    plain = exact_attention(a_problem(Causal(), q_len=7, k_len=4))
    assert plain.dq is not None
    assert torch.count_nonzero(plain.out[:, :, :3]) == torch.count_nonzero(plain.dq[:, :, :3]) == 0
    assert bool((plain.lse[:, :, :3] == -math.inf).all())
    assert bool(plain.lse[:, :, 3:].isfinite().all())
    inputs = a_problem(Causal(), (Sink(),), q_len=7, k_len=4)
    sink = inputs.tensors["sink"].double()
    assert torch.allclose(
        exact_attention(inputs).lse[:, :, :3], sink[None, :, None].expand(2, 4, 3), rtol=1e-15
    )


def test_no_tf32_and_no_autocast_reaches_it() -> None:
    inputs = a_problem(Causal())
    plain = named(exact_attention(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert differing(named(exact_attention(inputs)), plain) == []
    products = torch.backends.cuda.matmul
    before, products.allow_tf32 = products.allow_tf32, True
    try:
        with full_precision():
            assert not products.allow_tf32
        assert products.allow_tf32
    finally:
        products.allow_tf32 = before
