"""The named distributions are finite, deterministic, and true to their names."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from attnbench.errors import CaseError
from attnbench.problem import Case, Causal, Padding, make_inputs
from attnbench.problem.distributions import DISTRIBUTIONS, seen_keys


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_is_finite_and_deterministic(
    a_case: Callable[..., Case], distribution: str
) -> None:
    for dtype in ("fp16", "fp32"):
        case = a_case(dtype=dtype, mask=Padding((9,)), direction="fwd_bwd")
        first, second = (make_inputs(case, 4, distribution=distribution) for _ in range(2))
        assert first.checksum() == second.checksum()
        assert all(bool(x.isfinite().all()) for x in first.tensors.values())


def test_huge_numbers_lie_only_at_keys_that_no_query_of_the_key_head_may_attend() -> None:
    case = Case(
        batch=2, q_len=5, k_len=9, q_heads=2, head_dim=4, dtype="fp32", mask=Padding((3, 7)) & Causal()
    )
    seen = seen_keys(case)
    allowed = case.mask.materialize(2, 2, 5, 9).expand(2, 2, 5, 9)
    assert (seen == allowed.any(2).numpy()).all()
    inputs = make_inputs(case, 0, distribution="huge_unseen")
    assert ((inputs.k.abs() > 1e20).all(-1).numpy() == ~seen).all()


def test_none_is_no_distribution_and_the_error_names_it() -> None:
    case = Case(q_len=2, k_len=2, q_heads=1, head_dim=8, dtype="fp32")
    with pytest.raises(CaseError, match="no distribution called None"):
        make_inputs(case, distribution=None)  # type: ignore[arg-type]
