"""`attention` calls one backend on the caller's own tensors, as one node of their autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from attnbench.backend.interface import Backend, Prepared
from attnbench.backend.registry import resolve
from attnbench.errors import AttnbenchError, CaseError
from attnbench.problem import Case, Full, Inputs, Mask, Score

if TYPE_CHECKING:
    from torch import Tensor


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = Full(),
    scores: Sequence[Score] = (),
    scale: float | None = None,
    backend: str = "naive",
) -> Tensor:
    """softmax(scale q k^T, changed by `scores`, under `mask`) v, by the named backend.

    q [B, H, Q, D], k [B, Hkv, K, D], v [B, Hkv, K, Dv]: one dtype of float32, bfloat16, float16, one device.
    Returns [B, H, Q, Dv], differentiable in q, k, v and the tensors of score changes. `scale` None is
    1 / sqrt(D). Score changes that need a tensor carry it: `Bias(tensor)`, `Sink(tensor)`,
    `RelativeBias(rule, tensor=table)`. Raises CaseError if the tensors are no attention problem, and
    AttnbenchError with the backend's reason if it refuses the case.
    """
    case = case_of(q, k, v, mask=mask, scores=scores, scale=scale)
    loaded = resolve(backend) if ".py:" in backend else _resolved(backend)
    refusal = loaded.refuses(case, q.device.type)
    if refusal is not None:
        raise AttnbenchError(f"{backend} refuses this case: {refusal.reason}")
    inputs = Inputs(case, q, k, v, None, case.scores)
    try:
        return called(loaded.prepare(case, inputs), case, q, k, v)
    except NotImplementedError as reason:
        raise AttnbenchError(f"{backend} refuses this case: {reason}") from reason


@cache
def _resolved(name: str) -> Backend:
    # Resolving a name reads every bundled file's requirements: 40 ms, more than most calls.
    return resolve(name)


def case_of(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    mask: Mask = Full(),
    scores: Sequence[Score] = (),
    scale: float | None = None,
) -> Case:
    """The case of these tensors, with a backward if one of them requires a gradient; see `attention`."""
    import torch

    names = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.ndim != 4:
            raise CaseError(f"{name} is [B, heads, length, dim], not of shape {tuple(x.shape)}")
        if x.dtype not in names:
            raise CaseError(f"{name} is float32, bfloat16 or float16, not {x.dtype}")
        if (x.dtype, x.device) != (q.dtype, q.device):
            raise CaseError(
                f"q is {q.dtype} on {q.device}, but {name} is {x.dtype} on {x.device}; convert one of them"
            )
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise CaseError(f"q [B, H, Q, D], k [B, Hkv, K, D], v [B, Hkv, K, Dv] do not fit together: {shapes}")
    for score in scores:
        if score.gradient is not None and score.tensor is None:
            raise CaseError(f"{score} describes a tensor; give the tensor itself, e.g. Bias(tensor)")
    tensors = (q, k, v, *(score.tensor for score in scores if score.tensor is not None))
    differentiable = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return Case(
        batch=q.shape[0],
        q_len=q.shape[2],
        k_len=k.shape[2],
        q_heads=q.shape[1],
        kv_heads=k.shape[1],
        head_dim=q.shape[3],
        v_dim=v.shape[3],
        dtype=names[q.dtype],  # type: ignore[arg-type]
        mask=mask,
        scores=tuple(scores),
        scale=scale,
        direction="fwd_bwd" if differentiable else "fwd",
    )


def called(prepared: Prepared, case: Case, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """The output of a case prepared on these tensors, as one node of their autograd graph."""
    if not case.needs_backward:
        return prepared.forward().out
    named = [(score.gradient, score.tensor) for score in case.scores if score.tensor is not None]
    return _differentiable()(prepared, [name for name, _ in named], q, k, v, *(tensor for _, tensor in named))


@cache
def _differentiable() -> Callable[..., Tensor]:
    """A prepared case as one autograd function: torch sees one node, whatever computes the gradients."""
    import torch
    from torch.autograd.function import once_differentiable

    class Attend(torch.autograd.Function):
        @staticmethod
        def forward(
            ctx: Any, prepared: Prepared, names: list[str], q: Tensor, k: Tensor, v: Tensor, *tensors: Tensor
        ) -> Tensor:
            ctx.prepared, ctx.names = prepared, names
            return prepared.forward().out

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
            gradients = ctx.prepared.backward(dout)
            scores = (gradients.scores[name] for name in ctx.names)
            return (None, None, gradients.dq, gradients.dk, gradients.dv, *scores)

    return Attend.apply
