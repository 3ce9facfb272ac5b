"""A right function is right in whatever style it is written; what the harness cannot call is told beforehand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import attnbench as ab
from attnbench.backend import FunctionBackend
from attnbench.conformance import check
from attnbench.errors import AttnbenchError
from attnbench.problem import Case, make_inputs
from tests.conformance.functions import attention, right
from tests.conformance.styles import STYLES

SIZES: dict[str, Any] = {
    "batch": 2,
    "q_len": 17,
    "k_len": 17,
    "q_heads": 4,
    "kv_heads": 2,
    "head_dim": 16,
    "dtype": "fp32",
}
TRAINING = Case(**SIZES, mask=ab.Causal(), direction="fwd_bwd")
INFERENCE = Case(**SIZES, mask=ab.Causal())


@pytest.mark.parametrize("name", STYLES)
def test_a_right_function_is_right_in_every_style(name: str) -> None:
    for case in (TRAINING, INFERENCE):
        report = check(STYLES[name], case=case, only=("oracle", "protocol"))
        assert report.verdict == "right", str(report)
        assert not report.limits


def test_a_second_tensor_of_the_form_of_the_lse_is_judged_as_the_lse() -> None:
    def in_base_2(**kwargs: Any) -> Any:
        out, lse = STYLES["a pair of out and LSE"](**kwargs)
        return out, lse * 1.4427

    fn = lambda q, k, v, *, mask, scores, scale: in_base_2(  # noqa: E731
        q=q, k=k, v=v, mask=mask, scores=scores, scale=scale
    )
    report = check(fn, case=INFERENCE)
    assert [f.tensor for f in report.failures] == ["lse"]


def test_an_input_that_gets_no_gradient_is_wrong_and_not_an_exception() -> None:
    def detached(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return attention(q, k.detach(), v, mask, scores, scale)

    report = check(detached, case=TRAINING)
    assert [f.tensors for f in report.failures] == [("dk",)], str(report)


def test_a_single_key_needs_no_gradient_of_q() -> None:
    def takes_the_value(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return (
            v.expand(*q.shape[:3], v.shape[3])
            if k.shape[2] == 1
            else right(q, k, v, mask=mask, scores=(), scale=scale)
        )

    case = Case(q_len=3, k_len=1, q_heads=2, head_dim=16, dtype="fp32", direction="fwd_bwd")
    assert check(takes_the_value, case=case).ok


def test_gradients_of_one_forward_may_be_taken_again() -> None:
    inputs = make_inputs(TRAINING)
    assert inputs.dout is not None
    prepared = FunctionBackend(STYLES["torch.compile"], "compiled").prepare(TRAINING, inputs)
    prepared.forward()
    first, second = prepared.backward(inputs.dout), prepared.backward(2 * inputs.dout)
    torch.testing.assert_close(second.dq, 2 * first.dq)


def test_what_returns_no_tensor_is_told_what_to_return() -> None:
    report = check(lambda q, k, v, *, mask, scores, scale: {"out": q}, case=INFERENCE)
    assert "returns a dict; return out [B, H, Q, Dv]" in report.failures[0].reason


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda q, k, v: q, "cannot be called as fn"),
        (torch.nn.Linear(2, 2), "Linear cannot be called as fn"),
        (torch.nn.Linear, "is a class; give an instance"),
    ],
)
def test_what_cannot_be_called_is_no_function_to_check(fn: Any, words: str) -> None:
    with pytest.raises(AttnbenchError, match=words):
        check(fn, case=INFERENCE)
