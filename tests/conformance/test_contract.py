"""The contract of a plain function is found: one that fits everything and explains what flash rejects, or none."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import attnbench as ab
from attnbench.conformance.properties import exact as properties
from attnbench.conformance.properties.property import Property
from attnbench.conformance.report import Report
from tests.conformance import eager
from tests.conformance.handed.functions import Function, anything, rounded, that_takes, weights

HALVES = ("bf16", "fp16")
SMALL = "batch == 1 and q_len <= 193 and k_len <= 257 and q_heads <= 6 and head_dim <= 64 and v_dim <= 64"
NEGATIVE = {"q_len": 65, "k_len": 65, "q_heads": 2, "head_dim": 32, "direction": "fwd_bwd"}


def checked(function: Function, **request: Any) -> Report:
    return ab.check(function, **({"dtypes": HALVES, "where": SMALL, "level": "smoke"} | request))


def on_one_case(
    function: Any, dtype: str = "bf16", distribution: str = "negative_lse", **request: Any
) -> Report:
    return ab.check(function, case=NEGATIVE | {"dtype": dtype}, distribution=distribution, **request)


@pytest.mark.parametrize("function", [eager.annotated_transformer, eager.llama_eager, eager.min_gpt])
def test_public_half_precision_code_is_right_under_the_contract_that_it_keeps(function: Function) -> None:
    report = checked(function, declare="empty_rows=mean_v", directions={"fwd_bwd"})
    assert report.ok, str(report)
    assert report.contract == "dense"
    assert report.not_flash == "scores are rounded to bf16 and fp16"
    assert (
        str(report)
        .splitlines()[0]
        .startswith(
            f"{function.__name__}: right under the dense contract; not under flash: scores are rounded to bf16 and fp16"
        )
    )
    assert report.to_json()["not_flash"] == report.not_flash


@pytest.mark.slow  # two minutes of one core
@pytest.mark.parametrize("function", [eager.annotated_transformer, eager.llama_eager, eager.min_gpt])
def test_the_whole_check_of_public_code_is_right(function: Function) -> None:
    report = ab.check(function, declare="empty_rows=mean_v")
    assert report.ok, str(report)
    assert report.not_flash == "scores are rounded to bf16 and fp16"


def test_code_in_float32_is_right_under_flash() -> None:
    report = checked(eager.in_float32, dtypes={"bf16"})
    assert report.ok, str(report)
    assert report.contract == "flash"
    assert not report.not_flash


def test_a_contract_that_is_asked_for_is_kept() -> None:
    report = on_one_case(eager.llama_eager, contract="flash")
    assert report.verdict == "wrong"
    assert not report.not_flash
    declared = on_one_case(ab.as_backend(eager.llama_eager, contract="flash"))
    assert declared.verdict == "wrong"
    assert on_one_case(eager.llama_eager, contract="dense").ok
    assert on_one_case(eager.llama_eager).not_flash == "scores are rounded to bf16"


def low_row_sum(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """FLASH, but for the sum of a row's weights, which is kept in the dtype."""
    s = (q.float() @ k.float().mT * scale).masked_fill(~allowed, -math.inf)
    e = torch.exp(s - s.detach().amax(-1, keepdim=True))
    total = e[..., :16].sum(-1, keepdim=True)
    for first in range(16, e.shape[-1], 16):
        total = rounded(total + e[..., first : first + 16].sum(-1, keepdim=True), q.dtype)
    return (rounded(e, q.dtype) @ v.float() / total).to(q.dtype)


class _LowDelta(torch.autograd.Function):
    """FLASH, but for delta, which is kept in the dtype."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
        p = weights(q.float() @ k.float().mT * scale, allowed)
        out = (p.to(q.dtype).float() @ v.float()).to(q.dtype)
        ctx.save_for_backward(q, k, v, p, out)
        ctx.scale = scale
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        q, k, v, p, out = ctx.saved_tensors
        delta = (dout.float() * out.float()).sum(-1, keepdim=True).to(q.dtype).float()
        ds = (p * (dout.float() @ v.float().mT - delta)).to(q.dtype).float()
        dq, dk = ds @ k.float() * ctx.scale, ds.mT @ q.float() * ctx.scale
        dv = p.to(q.dtype).float().mT @ dout.float()
        return dq.to(q.dtype), dk.to(q.dtype), dv.to(q.dtype), None, None


def low_delta(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    return _LowDelta.apply(q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1), allowed, scale)


@pytest.mark.parametrize(
    ("function", "distribution"), [(low_row_sum, "near_constant_v"), (low_delta, "positive")]
)
def test_a_delta_or_a_row_sum_in_bf16_stays_wrong(function: Any, distribution: str) -> None:
    case = NEGATIVE | {"k_len": 257, "dtype": "bf16"}
    report = ab.check(that_takes(anything, function), case=case, distribution=distribution)
    assert report.verdict == "wrong", str(report)
    assert not report.not_flash
    # Dense allows the delta, but its scores are not rounded, so that asking for dense is no answer.
    assert "--contract" not in report.failures[0].reason


def test_a_failure_that_cannot_tell_names_the_contract_that_allows_it() -> None:
    case = NEGATIVE | {"q_len": 2, "k_len": 257, "dtype": "bf16"}  # too few rows for a trace
    report = ab.check(eager.llama_eager, case=case, distribution="negative_lse")
    assert report.verdict == "wrong"
    assert report.failures[0].reason.endswith("; --contract dense allows it")


def without_the_last_key(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """Llama's eager code that leaves the last of more than 64 keys out."""
    if k.shape[2] > 64:
        mask = mask & ab.Padding([k.shape[2] - 1])
    return eager.llama_eager(q, k, v, mask=mask, scores=scores, scale=scale)


def test_a_bug_of_half_precision_code_is_wrong_under_the_contract_that_it_keeps() -> None:
    report = checked(
        without_the_last_key, dtypes={"bf16"}, declare="empty_rows=mean_v", directions={"fwd_bwd"}
    )
    assert report.verdict == "wrong"
    assert all(failure.case.k_len > 64 for failure in report.failures), str(report)


@pytest.mark.parametrize("given", ["mean_v", "nan"])
def test_rows_without_a_key_are_one_failure_with_its_answer(given: str) -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        out = eager.in_float32(q, k, v, mask=mask, scores=scores, scale=scale)
        empty = ~eager.allowed_in(mask, q, k).any(-1, keepdim=True)
        mean = v.float().mean(2, keepdim=True).repeat_interleave(q.shape[1] // k.shape[1], 1)
        return torch.where(empty, mean if given == "mean_v" else math.nan, out.float()).to(q.dtype)

    report = checked(fn, dtypes={"fp32", "bf16"}, directions={"fwd"})
    assert report.verdict == "wrong"
    assert len(report.failures) == 1, str(report)
    assert f"--declare empty_rows={given}" in report.failures[0].cause
    assert checked(fn, dtypes={"bf16"}, declare={"empty_rows": given}, directions={"fwd"}).ok


def exp2_of_whole_exponents(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Scale and log2(e) on q; the reference of the softmax is a whole exponent, not the row's maximum."""
    s = ((q.float() * (scale * math.log2(math.e))) @ k.float().mT).masked_fill(~allowed, -math.inf)
    top = s.detach().amax(-1, keepdim=True)
    e = torch.exp2(s - torch.ceil(top.masked_fill(top == -math.inf, 0.0)))
    total = e.sum(-1, keepdim=True)
    return (rounded(e, q.dtype) @ v.float() / total.masked_fill(total == 0, 1.0)).to(q.dtype)


def by_splits(count: int) -> Callable[..., Tensor]:
    """Splits of the keys, each with P = exp(s - LSE) of its own, merged by their LSE; one split is two passes."""

    def core(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
        s = (q.float() @ k.float().mT * scale).masked_fill(~allowed, -math.inf)
        outs, lses = [], []
        for part, values in zip(s.tensor_split(count, -1), v.float().tensor_split(count, 2), strict=True):
            some = (part > -math.inf).any(-1, keepdim=True)
            lse = torch.logsumexp(torch.where(some, part, 0.0), -1, keepdim=True)
            outs.append(rounded(torch.exp(torch.where(some, part - lse, -math.inf)), q.dtype) @ values)
            lses.append(torch.where(some, lse, -math.inf))
        w = torch.cat(lses, -1)
        top = w.detach().amax(-1, keepdim=True)
        w = torch.exp(w - top.masked_fill(top == -math.inf, 0.0))
        w = w / w.sum(-1, keepdim=True).clamp_min(1e-30)
        return sum(w[..., n : n + 1] * out for n, out in enumerate(outs)).to(q.dtype)  # type: ignore[union-attr]

    return core


def per_head(core: Callable[..., Tensor]) -> Function:
    def repeated(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
        return core(q, *eager.repeated(q, k, v), allowed, scale)

    return that_takes(anything, repeated)


@pytest.mark.parametrize("count", [1, 3])
def test_weights_from_the_lse_are_right_under_flash_splits(count: int) -> None:
    function = per_head(by_splits(count))
    report = checked(function, level="standard", only="oracle", dtypes={"fp32"}, directions={"fwd_bwd"})
    assert report.ok, str(report)
    if count == 1:
        assert report.contract == "flash_splits"
        assert report.not_flash == "P is taken from the LSE in the forward"


def test_rows_without_a_key_do_not_hide_the_trace_of_the_lse() -> None:
    case = {"q_len": 128, "k_len": 128, "q_heads": 2, "head_dim": 96, "dtype": "fp32", "scale": 0.2}
    report = ab.check(per_head(by_splits(1)), case=case | {"mask": "documents(64, 32)"}, distribution="large")
    assert report.ok, str(report)
    assert report.contract == "flash_splits"


def test_a_softmax_relative_to_a_whole_exponent_is_right_in_every_property() -> None:
    small = "batch <= 2 and q_len <= 65 and k_len <= 65 and q_heads <= 4 and head_dim <= 64"
    exact = [name for name, each in vars(properties).items() if isinstance(each, Property)]
    assert len(exact) == 7
    function = per_head(exp2_of_whole_exponents)
    report = checked(function, dtypes={"fp32", "bf16"}, where=small, only=exact)
    assert report.ok, str(report)


@pytest.mark.slow  # 15 s of one core
def test_two_contracts_in_two_dtypes_are_no_contract() -> None:
    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        in_dtype = per_head(by_splits(1)) if q.dtype == torch.float32 else eager.llama_eager
        return in_dtype(q, k, v, mask=mask, scores=scores, scale=scale)

    request = {"level": "standard", "only": "oracle", "declare": "empty_rows=mean_v"}
    report = checked(fn, dtypes={"fp32", "bf16"}, directions={"fwd_bwd"}, **request)
    assert report.verdict == "wrong"
    assert report.failures[0].reason.startswith("no one contract fits: flash_splits in fp32, dense in bf16")
