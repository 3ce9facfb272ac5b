"""A diagnosis names the plainest cause first, once per reason, and from the run that failed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.conformance import check
from attnbench.problem import Case, Causal


def zeros(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)


def test_an_output_of_zeros_is_called_that_first() -> None:
    case = Case(q_len=64, k_len=64, q_heads=2, head_dim=32, dtype="fp32", mask=Causal())
    (failure,) = check(zeros, case=case).failures
    assert failure.causes[0] == "the output is all zeros"
    assert len(failure.causes) > 1  # a tile of keys left out explains it as well


def test_a_function_without_a_backward_is_told_how_to_say_so() -> None:
    case = Case(q_len=4, k_len=4, q_heads=1, head_dim=16, dtype="fp32", direction="fwd_bwd")
    (failure,) = check(zeros, case=case).failures
    assert "--direction fwd" in failure.causes[0]


def test_a_failure_of_every_case_in_the_same_words_is_shown_once() -> None:
    def misspelt(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        raise AttributeError("no such thing") if q.shape[3] == 64 else ValueError("nor this")

    report = check(misspelt, level="smoke", dtypes={"fp32"}, directions={"fwd"})
    assert len(report.failures) > 4
    text = str(report)
    assert text.count("no such thing") == text.count("nor this") == 1
    assert all(failure.causes and failure.command for failure in report.failures)


def test_a_failure_is_explained_from_the_run_that_failed() -> None:
    calls = 0

    def counted(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        nonlocal calls
        calls += 1
        return zeros(q, k, v, mask=mask, scores=scores, scale=scale)

    case = Case(q_len=1, k_len=1, q_heads=1, head_dim=16, dtype="fp32")
    (failure,) = check(counted, case=case).failures
    assert failure.smallest == case  # no smaller case is tried
    assert calls == 1 + 3  # the check's, and three that show whether the answer changes when called again
