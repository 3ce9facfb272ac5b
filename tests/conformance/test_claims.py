"""Claims to the bit are measured for every backend, told, and wrong only if they are claimed and do not hold."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.backend import Backend, Capabilities, FunctionBackend
from attnbench.backend.interface import CLAIMS
from attnbench.conformance import check
from attnbench.conformance.claims import DIFFERS, NOT_ASKED, SAME
from attnbench.conformance.report import Report
from attnbench.errors import AttnbenchError


def tiled(q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float, block: int, splits: int = 1) -> Tensor:
    """Tiles of `block` keys in float64, P rounded to q's dtype against the maximum so far: bits depend on the tiles."""
    group, dtype = q.shape[1] // k.shape[1], q.dtype
    s = q.double() @ k.double().repeat_interleave(group, 1).mT * scale
    s = s.masked_fill(~mask.materialize(*q.shape[:3], k.shape[2]), -math.inf)
    wide = v.double().repeat_interleave(group, 1)
    parts = []
    for some in torch.arange(k.shape[2]).chunk(splits):
        top, total = torch.full_like(s[..., :1], -math.inf), torch.zeros_like(s[..., :1])
        out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.float64)
        for keys in some.split(block):
            new = torch.maximum(top, s[..., keys].amax(-1, keepdim=True))
            finite = new.masked_fill(new == -math.inf, 0.0)
            p = (s[..., keys] - finite).exp()
            total = total * (top - finite).exp() + p.sum(-1, keepdim=True)
            out = out * (top - finite).exp() + p.to(dtype).double() @ wide[:, :, keys]
            top = new
        parts.append((out, total, top))
    top = torch.stack([t for _, _, t in parts]).amax(0)
    weights = [(t - top).nan_to_num(nan=-math.inf).exp() for _, _, t in parts]
    total = torch.stack([w * x for w, (_, x, _) in zip(weights, parts, strict=True)]).sum(0)
    out = torch.stack([w * x for w, (x, _, _) in zip(weights, parts, strict=True)]).sum(0)
    return (out / torch.where(total == 0, 1.0, total)).to(dtype)


def fixed_tiles(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    if scores:
        raise NotImplementedError("takes no score changes")
    return tiled(q, k, v, mask, scale, block=64)


def tiles_by_batch(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return tiled(q, k, v, mask, scale, block=32 if q.shape[0] > 2 else 64)


def tiles_by_length(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return tiled(q, k, v, mask, scale, block=64 if q.shape[2] in (1, 200) else 16)


def split_decode(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return tiled(q, k, v, mask, scale, block=64, splits=4 if q.shape[2] == 1 else 1)


def splits_by_longest(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return tiled(q, k, v, mask, scale, block=64, splits=-(-k.shape[2] // 128) if q.shape[2] == 1 else 1)


class _AnyOrder(torch.autograd.Function):
    # dq is added up over tiles of keys in another order in each call, as atomic adds do (flash-attention#2244).
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, scale: float) -> Tensor:
        ctx.mask, ctx.scale = mask, scale
        ctx.save_for_backward(q, k, v)
        return fixed_tiles(q, k, v, mask=mask, scores=(), scale=scale)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        given = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = fixed_tiles(*given, mask=ctx.mask, scores=(), scale=ctx.scale)
        dq, dk, dv = torch.autograd.grad(out, given, dout)
        parts = dq.float() * torch.tensor([0.3, 0.5, 0.2, -0.1, 0.1])[:, None, None, None, None]
        total = torch.zeros_like(dq, dtype=torch.float32)
        for n in torch.randperm(5).tolist():
            total = total + parts[n]
        return total.to(dq.dtype), dk, dv, None, None


def atomic_dq(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    if scores:
        raise NotImplementedError("takes no score changes")
    return _AnyOrder.apply(q, k, v, mask, scale)


def random_order(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return tiled(q, k, v, mask, scale, block=int(torch.randint(16, 48, ())))


FAULTS: dict[str, tuple[Any, str, set[str]]] = {
    "none": (fixed_tiles, "bf16", set()),
    "tiles by batch size": (tiles_by_batch, "bf16", {"batch_invariant"}),
    "tiles by length": (tiles_by_length, "bf16", {"length_invariant"}),
    "split-KV decoding": (split_decode, "bf16", {"batch_invariant", "decode_equals_prefill"}),
    "splits by the longest cache": (splits_by_longest, "bf16", {"batch_invariant", "decode_equals_prefill"}),
    "atomic dq": (atomic_dq, "fp32", {"bitwise_repeatable_backward"}),
}


def claimed(fn: Any, dtype: str, claims: Any = CLAIMS, **options: Any) -> Report:
    backend = FunctionBackend(fn, "planted", Capabilities(claims=frozenset(claims)))
    asked: dict[str, Any] = {"only": {"claims"}, "repeats": 3} | options
    return check(backend, dtypes={dtype}, **asked)


@pytest.mark.parametrize("name", FAULTS)
def test_a_claim_that_does_not_hold_is_wrong_and_no_other_is(name: str) -> None:
    fn, dtype, broken = FAULTS[name]
    report = claimed(fn, dtype)
    assert {failure.check for failure in report.failures} == broken, str(report)
    assert report.verdict == ("wrong" if broken else "right")


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_not_claimed_is_told_and_not_wrong(name: str) -> None:
    fn, dtype, broken = FAULTS[name]
    report = check(fn, dtypes={dtype}, only={"claims"}, repeats=3)
    assert report.verdict == "right", str(report)
    assert {claim.name for claim in report.claims if claim.told == DIFFERS} == broken
    for claim in report.claims:
        assert claim.name in str(report)


def test_a_failed_claim_names_the_calls_the_place_and_the_command() -> None:
    claim = "bitwise_repeatable_backward"
    report = claimed(atomic_dq, "fp32", {claim}, only={claim}, repeats=7, level="exhaustive")
    (failure,) = report.failures
    assert failure.tensor == "dq"
    assert len(failure.worst) == 4
    assert "7 calls" in failure.reason
    assert "atomic adds" in failure.cause
    assert "--only bitwise_repeatable_backward" in failure.command
    assert "--repeats 7 --level exhaustive" in failure.command


def test_a_plain_function_claims_by_declaring() -> None:
    claim = "bitwise_repeatable_backward"
    told = check(atomic_dq, dtypes={"fp32"}, only={claim}, repeats=3)
    assert told.verdict == "right", str(told)
    report = check(
        atomic_dq, dtypes={"fp32"}, only={claim}, repeats=3, declare=f"claims={claim}+batch_invariant"
    )
    (failure,) = report.failures
    assert "--declare claims=" in failure.command


def test_a_forward_that_differs_within_the_noise_is_told_and_fails_no_other_check() -> None:
    report = check(
        random_order, dtypes={"bf16"}, masks={"full"}, directions={"fwd"}, where="q_len <= 65 and not scores"
    )
    assert not report.failures, str(report)
    told = {claim.name: claim.told for claim in report.claims}
    assert told["bitwise_repeatable_forward"] == DIFFERS
    assert told["bitwise_repeatable_backward"] == NOT_ASKED


def test_gradients_in_any_order_fail_no_property() -> None:
    report = check(atomic_dq, dtypes={"fp32"}, only={"powers_of_two_pass_through", "protocol"})
    assert report.ok, str(report)


def test_claims_are_measured_without_torchs_deterministic_mode() -> None:
    modes = []

    class Recorded(Backend):
        name = "recorded"
        capabilities = Capabilities()

        def prepare(self, case: Any, inputs: Any) -> Any:
            modes.append(torch.are_deterministic_algorithms_enabled())
            return FunctionBackend(fixed_tiles, "recorded").prepare(case, inputs)

    check(Recorded(), dtypes={"bf16"}, only={"claims"}, repeats=1)
    assert modes
    assert not any(modes)


def test_what_a_backend_does_not_take_is_not_asked() -> None:
    def full_only(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if str(mask) != "full":
            raise NotImplementedError("full attention only")
        return fixed_tiles(q, k, v, mask=mask, scores=scores, scale=scale)

    report = check(full_only, dtypes={"bf16"}, only={"claims"}, repeats=1)
    told = {claim.name: claim.told for claim in report.claims}
    assert told["batch_invariant"] == SAME
    assert told["length_invariant"] == told["decode_equals_prefill"] == NOT_ASKED


def test_an_unknown_claim_is_refused() -> None:
    with pytest.raises(AttnbenchError, match="batch_invarient"):
        Capabilities(claims=frozenset({"batch_invarient"}))  # type: ignore[arg-type]
