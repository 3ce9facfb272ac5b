"""An exception for a whole value of a factor is a suspected limit; one that other cases escape is a crash."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from attnbench.conformance import check
from attnbench.conformance.limits import covering_factor, grouped, value_text
from tests.conformance.functions import attention

SMALL = "batch <= 2 and q_len <= 65 and k_len <= 65 and q_heads <= 6 and head_dim <= 64"
QUICK: dict[str, Any] = {"where": SMALL, "masks": {"full"}, "only": {"oracle"}}


def test_limits_of_one_wording_are_one_whatever_the_numbers() -> None:
    words = "raises ValueError: a head dim of {} is too large"
    limits = grouped(
        [("head_dims", (dim, dim), words.format(dim)) for dim in (192, 256)] + [("heads", (6, 2), "no")]
    )
    assert [str(limit) for limit in limits] == [
        "head dims 192, 256: raises ValueError: a head dim of 192 is too large",
        "heads 6:2: no",
    ]


def test_values_are_shown_as_users_write_them() -> None:
    assert value_text("lengths", (1, 65)) == "1x65"
    assert value_text("head_dims", (192, 128)) == "192/128"
    assert value_text("head_dims", (64, 64)) == "64"
    assert value_text("scale", None) == "default"


def test_a_factor_is_covered_only_if_no_accepted_row_computes_its_value(a_row: Any) -> None:
    raised, accepted = a_row(heads=(6, 2), batch=3), [a_row(), a_row(batch=2)]
    assert covering_factor(raised, accepted, lambda row: row.heads != (6, 2)) == "heads"
    assert covering_factor(raised, accepted, lambda row: row.batch != 3) == "batch"
    assert covering_factor(raised, accepted, lambda row: (row.heads, row.batch) != ((6, 2), 3)) is None
    assert covering_factor(raised, accepted, lambda row: None) is None


def test_a_crash_now_and_then_is_a_failure_and_no_limit() -> None:
    calls = itertools.count(1)

    def unsteady(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if next(calls) % 5 == 0:
            raise RuntimeError("an illegal memory access was encountered")
        return attention(q, k, v, mask, scores, scale)

    report = check(unsteady, dtypes={"bf16"}, directions={"fwd"}, **QUICK)
    assert report.verdict == "wrong", str(report)
    assert not report.limits
    assert all("illegal memory access" in f.reason for f in report.failures)
    assert "it crashed here" in report.failures[0].causes[0]


def test_a_crash_for_two_values_together_is_a_failure_and_no_limit() -> None:
    def meets(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if q.shape[1] == 6 and q.shape[2] % 2:
            raise IndexError("out of bounds")
        return attention(q, k, v, mask, scores, scale)

    report = check(meets, dtypes={"bf16"}, directions={"fwd"}, **QUICK)
    assert report.verdict == "wrong", str(report)
    assert not report.limits


def test_a_dtype_that_always_raises_is_a_limit_if_another_is_computed() -> None:
    def half(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        assert q.dtype == torch.bfloat16, "bf16 only"
        return attention(q, k, v, mask, scores, scale)

    report = check(half, dtypes={"fp32", "bf16"}, directions={"fwd"}, **QUICK)
    assert report.verdict == "right", str(report)
    assert [str(limit).partition(" (")[0] for limit in report.limits] == [
        "dtype fp32: raises AssertionError: bf16 only"
    ]
    alone = check(half, dtypes={"fp32"}, directions={"fwd"}, **QUICK)
    assert alone.verdict == "wrong"


def test_a_dtype_that_is_refused_leaves_the_others_as_they_are() -> None:
    def half(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if q.dtype != torch.bfloat16:
            raise NotImplementedError("bf16 only")
        return attention(q, k, v, mask, scores, scale)

    report = check(half, dtypes={"fp32", "bf16"}, directions={"fwd"}, **QUICK)
    assert report.verdict == "right", str(report)
    assert not report.limits
    assert {o.dtype for o in report.outcomes if o.status == "ok"} == {"bf16"}


def without_graph(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    with torch.no_grad():
        return attention(q, k, v, mask, scores, scale)


def forward_only(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    if q.requires_grad:
        raise NotImplementedError("forward only")
    return attention(q, k, v, mask, scores, scale)


def test_without_a_backward_the_forward_is_checked_in_full_and_one_line_says_so() -> None:
    def judged(report: Any) -> list[tuple[str, str]]:
        return [(o.case_id, o.distribution) for o in report.outcomes if o.status == "ok"]

    whole = judged(check(attention_alone, dtypes={"bf16"}, directions={"fwd"}, **QUICK))
    refusing = check(forward_only, dtypes={"bf16"}, **QUICK)
    assert judged(refusing) == whole
    assert refusing.verdict == "right"
    assert str(refusing).count("the forward is checked in full") == 1
    assert "no backward in bf16 (NotImplementedError: forward only)" in str(refusing)
    raising = check(without_graph, dtypes={"bf16"}, **QUICK)
    assert judged(raising) == whole
    assert raising.verdict == "right", str(raising)
    assert str(raising).count("the forward is checked in full") == 1
    assert "does not require grad" in str(raising)


def attention_alone(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, k, v, mask, scores, scale)
