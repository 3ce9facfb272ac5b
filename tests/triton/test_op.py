"""The torch operator: gradients, LSE, memory layout, packed documents, and errors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.backend import Backend
from attnbench.errors import CaseError, MaskError, ScoreError
from attnbench.problem import Bias, Causal, Sink, parse_mask


def _tensors(
    device: str, heads: int = 2, kv_heads: int = 1, length: int = 24, dim: int = 16
) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, heads, length, dim), (1, kv_heads, length, dim), (1, kv_heads, length, dim)]
    return tuple(torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes)


def _exact(q: Tensor, k: Tensor, v: Tensor, mask: Any, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    group = q.shape[1] // k.shape[1]
    s = torch.einsum("bhqd,bhkd->bhqk", q, k.repeat_interleave(group, 1)) * q.shape[-1] ** -0.5
    s = s if bias is None else s + bias
    allowed = mask.materialize(1, q.shape[1], q.shape[2], k.shape[2], device=q.device)
    s = s.masked_fill(~allowed, -torch.inf)
    return torch.softmax(s, -1) @ v.repeat_interleave(group, 1), torch.logsumexp(s, -1)


def test_gradients_flow_through_out_and_through_lse(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = _tensors(device)
    bias = torch.randn(1, 1, 24, 24, device=device, requires_grad=True)
    leaves = (q, k, v, bias)
    out, lse = attend(q, k, v, mask=Causal(), scores=(Bias(bias),))
    exact_out, exact_lse = _exact(q.double(), k.double(), v.double(), Causal(), bias.double())
    weight, lse_weight = torch.randn_like(out), torch.randn_like(lse)
    got = torch.autograd.grad((out * weight).sum() + (lse * lse_weight).sum(), leaves)
    wanted = torch.autograd.grad((exact_out * weight).sum() + (exact_lse * lse_weight).sum(), leaves)
    for mine, exact in zip(got, wanted, strict=True):
        scale = exact.abs().max()
        # float32 throughout: a few hundred roundings of 2^-24 of the largest gradient.
        assert (mine - exact).abs().max() < 256 * 2**-24 * scale


def test_the_output_lies_in_memory_as_the_queries_do(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = (x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in _tensors(device))
    out, lse = attend(q, k, v, mask=parse_mask("causal"))
    assert out.stride() == q.stride()
    assert lse.shape == q.shape[:3]


@pytest.mark.parametrize("v_dim", [8, 16, 128])
def test_rows_that_32_bits_do_not_span_are_laid_out_closer(triton_backend: Backend, v_dim: int) -> None:
    """[S, B, H, D] with more and more heads; the rows of an output of more columns lie further apart."""
    from attnbench_backends.triton.layout import LONGEST_TILE, empty_like_with, within_reach

    for heads in (1 << 15, 1 << 17, 1 << 19, 1 << 20):
        q = torch.empty(300, 1, heads, 16, device="meta").permute(1, 2, 0, 3)  # [B, H, S, D]
        out = empty_like_with(within_reach(q), v_dim)
        assert out.stride(2) * LONGEST_TILE < 1 << 31
        near = heads * max(16, v_dim) * LONGEST_TILE < 1 << 31
        assert (out.stride(1) < out.stride(2)) == near
        # What torch is told before, without the copy.
        assert empty_like_with(q, v_dim).stride() == out.stride()


def test_a_sink_given_as_a_number_needs_no_tensor(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = (x.detach() for x in _tensors(device))
    _, lse = attend(q, k, v, scores=(Sink(100.0),))
    assert torch.allclose(lse, torch.full_like(lse, 100.0))


def test_a_bias_without_its_tensor_is_refused(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    with pytest.raises(ScoreError, match="give the tensor itself"):
        attend(*_tensors(device), scores=(Bias("hqk"),))


def test_two_runs_give_the_same_bits(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    runs = []
    for _ in range(2):
        q, k, v = _tensors(device)
        out, _ = attend(q, k, v, mask=Causal())
        runs.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


@pytest.mark.parametrize(
    ("causal", "window"), [(False, (None, None)), (True, (None, None)), (True, (3, 0)), (False, (2, 4))]
)
def test_packed_documents_give_what_each_gives_alone(
    triton_backend: Backend, device: str, causal: bool, window: tuple[int | None, int | None]
) -> None:
    from attnbench_backends.triton.op import varlen

    lengths = (5, 0, 18, 1, 16)
    packed = (x[0].transpose(0, 1).contiguous() for x in _tensors(device, length=sum(lengths)))
    q, k, v = (x.detach().requires_grad_() for x in packed)
    cu_seqlens = torch.tensor([0, *lengths], device=device).cumsum(0)
    out, lse = varlen(q, k, v, cu_seqlens, causal=causal, window=window)
    assert out.is_contiguous()
    weight = torch.randn_like(out)
    got = torch.autograd.grad((out * weight).sum(), (q, k, v))

    bounds = ["inf" if x is None else x for x in window]
    mask = parse_mask(f"window({bounds[0]}, {bounds[1]})" + (" & causal" if causal else ""))
    leaves = [x.detach().double().requires_grad_() for x in (q, k, v)]
    parts = zip(*(x.split(lengths) for x in leaves), strict=True)
    each = [[x.transpose(0, 1)[None] for x in part] for part in parts if part[0].shape[0]]
    alone = [_exact(q, k, v, mask) for q, k, v in each]
    exact = torch.cat([o[0].transpose(0, 1) for o, _ in alone])  # [T, H, Dv]
    exact_lse = torch.cat([x[0] for _, x in alone], dim=-1)  # [H, T]
    wanted = torch.autograd.grad((exact * weight).sum(), leaves)
    for mine, right in zip((out, lse, *got), (exact, exact_lse, *wanted), strict=True):
        assert (mine - right).abs().max() < 256 * 2**-24 * right.abs().max()


def test_score_changes_mean_the_same_in_any_order(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = _tensors(device, heads=3, kv_heads=3, length=3)
    # Of the same shape where the problem is as long as it has heads, so that nothing but the order tells them apart.
    bias, sink = (torch.randn(shape, device=device, requires_grad=True) for shape in ((1, 3, 1, 1), (3,)))
    leaves = (q, k, v, bias, sink)
    runs = []
    for scores in ((Bias(bias), Sink(sink)), (Sink(sink), Bias(bias))):
        out, lse = attend(q, k, v, scores=scores)
        runs.append((out, lse, *torch.autograd.grad(out.square().sum() + lse.sum(), leaves)))
    assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))


def test_tensors_that_do_not_fit_together_are_refused(triton_backend: Backend, device: str) -> None:
    from attnbench_backends.triton.op import attend

    q, k, v = _tensors(device)
    for wrong in (
        (q, k[:, :, :5], v),
        (q, k, v[:, :, :5]),
        (q, k[..., :8], v),
        (q, k, v.expand(2, -1, -1, -1)),
    ):
        with pytest.raises(CaseError, match="do not fit together"):
            attend(*wrong)
    for wrong in ((q, k.half(), v), (q.double(), k.double(), v.double())):
        with pytest.raises(CaseError, match="float32, bfloat16 or float16, all the same"):
            attend(*wrong)
    short = torch.zeros(1, 2, 24, 5, device=device)
    with pytest.raises(ScoreError, match=r"takes a tensor of shape \(1, 2, 24, 24\) here"):
        attend(q, k, v, scores=(Bias(short),))


def test_a_plan_that_a_cuda_graph_was_captured_with_is_kept(
    triton_backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    from attnbench_backends.triton import op

    case = op._kept_case((1, 1, 8, 16), (1, 1, 8, 16), (1, 1, 8, 16), torch.float32, "causal", "", 1.0)
    gpu, made = torch.device("cuda", 0), object()
    monkeypatch.setattr(op, "_kept_plan", lambda case, device: made)
    monkeypatch.setattr(op, "_CAPTURED", {})
    for captures, kept in ((False, {}), (True, {(case, gpu): made})):
        monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda captures=captures: captures)
        assert op._plan(case, gpu) is made
        assert kept == op._CAPTURED


@pytest.mark.parametrize("ends", [[0, 5], [1, 24], [0, 20, 10, 24], [0]])
def test_cu_seqlens_that_do_not_cover_the_tokens_are_refused(
    triton_backend: Backend, device: str, ends: list[int]
) -> None:
    from attnbench_backends.triton.op import varlen

    q, k, v = (x[0].transpose(0, 1) for x in _tensors(device))
    with pytest.raises(MaskError, match="rises from 0 to the number of tokens, 24"):
        varlen(q, k, v, ends)
