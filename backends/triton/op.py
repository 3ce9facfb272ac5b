"""The kernel as one torch operator with a shape rule and a gradient, for torch.compile and CUDA graphs.

Users call `attend(q, k, v, ...)`, or `varlen` for packed documents. Both call `attnbench::attend`, which takes the mask
and the score changes as texts, so that a compiled graph holds them as constants; they are lowered once per shape. A
call does not synchronise with the host; the first call for a shape lowers the mask, so make it before capturing a CUDA
graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise

import torch
from torch import Tensor

from attnbench.errors import CaseError, MaskError, ScoreError
from attnbench.problem import (
    Case,
    Causal,
    Documents,
    Full,
    Mask,
    Score,
    Sink,
    SlidingWindow,
    canonical,
    parse_mask,
    parse_score,
)

from .changes import Changes
from .launch import Plan
from .layout import empty_like_with
from .score_gradients import score_gradients

DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
SEPARATOR = ";"  # between the texts of score changes; an operator of torch takes no list of texts


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask | str = Full(),
    scores: Sequence[Score] = (),
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [B, H, Q, Dv], lse float32 [B, H, Q]) of q [B, H, Q, D], k [B, Hkv, K, D], v [B, Hkv, K, Dv].

    Differentiable in q, k, v and the tensors of score changes, through out and lse. Raises CaseError if shapes or
    dtypes do not fit, ScoreError if a score change lacks its tensor or has one of another shape.
    """
    # A case holds its changes in canonical order; their tensors are passed separately.
    scores = [_with_tensor(score, q) for score in canonical(scores)]
    scale = q.shape[-1] ** -0.5 if scale is None else float(scale)
    tensors = [score.tensor for score in scores if score.tensor is not None]
    return _attend(q, k, v, tensors, str(mask), SEPARATOR.join(map(str, scores)), scale)


def varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor | Sequence[int],
    *,
    causal: bool = False,
    window: tuple[int | None, int | None] = (None, None),
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """(out [T, H, Dv], lse float32 [H, T]) of packed documents: q [T, H, D], k [T, Hkv, D], v [T, Hkv, Dv].

    Document n is the tokens cu_seqlens[n] to cu_seqlens[n + 1], as in flash_attn_varlen_func; they cover all tokens.
    `window` is (left, right), None unlimited. Differentiable as `attend`. A tensor of cu_seqlens is read on the host
    (which waits for a GPU: pass numbers, or a CPU tensor), and new lengths are lowered anew. Raises MaskError if
    cu_seqlens is no such list.
    """
    ends = cu_seqlens.tolist() if isinstance(cu_seqlens, Tensor) else list(cu_seqlens)
    tokens = q.shape[0]
    if len(ends) < 2 or ends[0] != 0 or ends[-1] != tokens or any(a > b for a, b in pairwise(ends)):
        raise MaskError(f"cu_seqlens rises from 0 to the number of tokens, {tokens}, not {ends}")
    mask: Mask = Documents([b - a for a, b in pairwise(ends)])
    if causal:
        mask = mask & Causal()
    if window != (None, None):
        mask = mask & SlidingWindow(*window)
    # [T, H, D] -> [1, H, T, D], views
    out, lse = attend(*(x.unsqueeze(0).transpose(1, 2) for x in (q, k, v)), mask=mask, scale=scale)
    return out.transpose(1, 2).squeeze(0), lse.squeeze(0)


def _with_tensor(score: Score, q: Tensor) -> Score:
    if isinstance(score, Sink) and score.tensor is None and score.value is not None:
        return Sink(torch.full((q.shape[1],), score.value, dtype=q.dtype, device=q.device))
    if score.gradient is not None and score.tensor is None:
        raise ScoreError(f"{score} describes a tensor; give the tensor itself, e.g. Bias(tensor)")
    return score


def _case(q: Tensor, k: Tensor, v: Tensor, mask: str, scores: str, scale: float) -> Case:
    if q.dtype not in DTYPES or not q.dtype == k.dtype == v.dtype:
        raise CaseError(
            f"q, k and v are float32, bfloat16 or float16, all the same: {q.dtype}, {k.dtype}, {v.dtype}"
        )
    return _kept_case(tuple(q.shape), tuple(k.shape), tuple(v.shape), q.dtype, mask, scores, scale)


@lru_cache(maxsize=256)
def _kept_case(
    q: tuple[int, ...],
    k: tuple[int, ...],
    v: tuple[int, ...],
    dtype: torch.dtype,
    mask: str,
    scores: str,
    scale: float,
) -> Case:
    if k != (q[0], k[1], k[2], q[3]) or v[:3] != k[:3]:
        raise CaseError(
            f"q [B, H, Q, D], k [B, Hkv, K, D] and v [B, Hkv, K, Dv] do not fit together: {q}, {k}, {v}"
        )
    changes = tuple(parse_score(text) for text in scores.split(SEPARATOR) if text)
    return Case(
        batch=q[0],
        q_heads=q[1],
        q_len=q[2],
        head_dim=q[3],
        kv_heads=k[1],
        k_len=k[2],
        v_dim=v[3],
        dtype=DTYPES[dtype],  # type: ignore[arg-type]
        mask=parse_mask(mask),
        scores=changes,
        scale=scale,
        direction="fwd_bwd",
    )


def _plan(case: Case, device: torch.device) -> Plan:
    """The plan of a case. A plan that a CUDA graph was captured with is kept, since the graph reads its lists."""
    plan = _kept_plan(case, device)
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        _CAPTURED[case, device] = plan
    return plan


_CAPTURED: dict[tuple[Case, torch.device], Plan] = {}


@lru_cache(maxsize=256)
def _kept_plan(case: Case, device: torch.device) -> Plan:
    plan = Plan(case, device)
    plan.build()
    return plan


def _computed(x: Tensor) -> Tensor:
    """float32 if the kernel is interpreted: the interpreter's half precision is wrong."""
    return x if x.is_cuda else x.float()


def _bound(plan: Plan, tensors: Sequence[Tensor]) -> Changes:
    case = plan.case
    rest = iter(tensors)
    shapes = [score.tensor_shape(case.extent) for score in case.scores]
    bound = []
    for score, shape in zip(case.scores, shapes, strict=True):
        if shape is not None:
            tensor = next(rest)
            if tuple(tensor.shape) != shape:
                raise ScoreError(f"{score} takes a tensor of shape {shape} here, not {tuple(tensor.shape)}")
            score = score.bound(_computed(tensor))
        bound.append(score)
    return plan.bind(tuple(bound))


@torch.library.custom_op("attnbench::attend", mutates_args=())
def _attend(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], mask: str, scores: str, scale: float
) -> tuple[Tensor, Tensor]:
    case = _case(q, k, v, mask, scores, scale)
    with _on(q.device):
        plan = _plan(case, q.device)
        changes = _bound(plan, tensors)
        out, lse = plan.forward(_computed(q), _computed(k), _computed(v), changes)
    return out.to(q.dtype), lse


@_attend.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], mask: str, scores: str, scale: float
) -> tuple[Tensor, Tensor]:
    return empty_like_with(q, v.shape[3]), q.new_empty(q.shape[:3], dtype=torch.float32)


@torch.library.custom_op("attnbench::attend_backward", mutates_args=())
def _attend_backward(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], out: Tensor, lse: Tensor, dout: Tensor,
    dlse: Tensor | None, mask: str, scores: str, scale: float,
) -> list[Tensor]:  # fmt: skip
    case = _case(q, k, v, mask, scores, scale)
    plan = _plan(case, q.device)
    changes = _bound(plan, tensors)
    inputs = _computed(q), _computed(k), _computed(v)
    dout = _computed(dout)
    with _on(q.device):
        dq, dk, dv, delta = plan.backward(*inputs, changes, _computed(out), lse, dout, dlse)
        named = score_gradients(plan, *inputs, changes, lse, delta, dout)
    wanted = [score.gradient for score in case.scores if score.tensor_shape(case.extent) is not None]
    ordered = [dq, dk, dv, *(named[name] for name in wanted if name is not None)]
    return [x.to(like.dtype) for x, like in zip(ordered, (q, k, v, *tensors), strict=True)]


@_attend_backward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, tensors: Sequence[Tensor], out: Tensor, lse: Tensor, dout: Tensor,
    dlse: Tensor | None, mask: str, scores: str, scale: float,
) -> list[Tensor]:  # fmt: skip
    made = [empty_like_with(x, x.shape[3]) for x in (q, k, v)]
    return [*made, *(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in tensors)]


def _save(ctx, inputs, output) -> None:  # type: ignore[no-untyped-def]
    q, k, v, tensors, ctx.mask, ctx.scores, ctx.scale = inputs
    out, lse = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(q, k, v, out, lse, *tensors)


def _differentiate(ctx, dout, dlse):  # type: ignore[no-untyped-def]
    q, k, v, out, lse, *tensors = ctx.saved_tensors
    dout = torch.zeros_like(out) if dout is None else dout
    arguments = (q, k, v, tensors, out, lse, dout, dlse, ctx.mask, ctx.scores, ctx.scale)
    dq, dk, dv, *rest = torch.ops.attnbench.attend_backward(*arguments)
    return dq, dk, dv, rest, None, None, None


_attend.register_autograd(_differentiate, setup_context=_save)


def _on(device: torch.device) -> contextlib.AbstractContextManager[object]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
