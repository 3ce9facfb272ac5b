"""Right functions in the styles that people write: nothing about them but the style is unusual."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from attnbench.backend import Output
from tests.conformance.functions import attention, right


def _checkpointed(reentrant: bool) -> Callable[..., Tensor]:
    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        inner = lambda q, k, v: attention(q, k, v, mask, scores, scale)  # noqa: E731
        return checkpoint(inner, q, k, v, use_reentrant=reentrant)  # type: ignore[no-any-return]

    return fn


def _keys_by_closure(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return checkpoint(lambda q: attention(q, k, v, mask, scores, scale), q, use_reentrant=True)  # type: ignore[no-any-return]


def _transposed_out(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    out = attention(q, k, v, mask, scores, scale)
    return out.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)


def _slice_of_padded(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    out = attention(q, k, v, mask, scores, scale)
    return torch.nn.functional.pad(out, (0, 5, 0, 3))[:, :, : q.shape[2], : v.shape[3]]


def _hooked(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    # The scale of dq and dk is applied in hooks of the arguments.
    if q.requires_grad:
        q.register_hook(lambda g: g * scale)
        k.register_hook(lambda g: g * scale)
    s = _Unscaled.apply(q, k, scale)
    return _weighted(s, q, k, v, mask, scores)


def _weighted(s: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Any, scores: Any) -> Tensor:
    if scores:
        raise NotImplementedError("takes no score changes")
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    p = torch.softmax(s.masked_fill(~allowed, -math.inf), -1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (p.to(q.dtype).float() @ v.repeat_interleave(q.shape[1] // k.shape[1], 1).float()).to(q.dtype)


class _Unscaled(torch.autograd.Function):
    """The scaled scores, float32; the gradients lack the scale."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(q, k)
        return q.float() @ k.float().repeat_interleave(q.shape[1] // k.shape[1], 1).transpose(-1, -2) * scale

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, ds: Tensor) -> Any:  # type: ignore[override]
        q, k = ctx.saved_tensors
        group = q.shape[1] // k.shape[1]
        dk = (ds.transpose(-1, -2) @ q.float()).unflatten(1, (k.shape[1], group)).sum(2)
        return (ds @ k.float().repeat_interleave(group, 1)).to(q.dtype), dk.to(k.dtype), None


class _FreesItsTensors(torch.autograd.Function):
    """The identity; a second backward finds nothing saved, as in kernels that free their buffers themselves."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = x.detach()
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:  # type: ignore[override]
        kept, ctx.kept = ctx.kept, None
        return g * torch.ones_like(kept)


def _freeing(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, k, _FreesItsTensors.apply(v), mask, scores, scale)


def _asks_for_gradients(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    q.requires_grad_(True)
    q.retain_grad()
    return attention(q, k, v, mask, scores, scale)


def _by_autograd(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    # out is the gradient of the LSE by a logit per feature: a forward that needs autograd.
    if q.requires_grad:
        return attention(q, k, v, mask, scores, scale)
    wide = v.float().requires_grad_()
    out = attention(q.float(), k.float(), wide, mask, scores, scale)
    (unused,) = torch.autograd.grad(out.sum(), wide)
    assert unused.shape == v.shape
    return attention(q, k, v, mask, scores, scale)


def _seeds(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    torch.manual_seed(0)
    order = torch.randperm(q.shape[2])
    return attention(q, k, v, mask, scores, scale)[:, :, order][:, :, order.argsort()]


def _gradient_of_its_own(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    with torch.no_grad():
        out = attention(q, k, v, mask, scores, scale)
    return out if not q.requires_grad else _Recomputed.apply(q, k, v, out, mask, scores, scale)


class _Recomputed(torch.autograd.Function):
    """An output that is given; its backward runs the forward again and takes `.grad` of copies."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, mask: Any, scores: Any, scale: float
    ) -> Tensor:
        ctx.save_for_backward(q, k, v)
        ctx.more = mask, scores, scale
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        copies = [x.detach().requires_grad_() for x in ctx.saved_tensors]
        with torch.enable_grad():
            out = attention(*copies, *ctx.more)
        out.backward(dout)
        return (*(x.grad for x in copies), None, None, None, None)


class Module(torch.nn.Module):
    """With a parameter of its own, which takes no part."""

    def __init__(self) -> None:
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(()))

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return attention(q, k, v, mask, scores, scale) * self.one.to(q.dtype)


def _with_more(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float, more: Any) -> Tensor:
    return attention(q, k, v, mask, scores, scale)


def _also(second: str) -> Callable[..., Any]:
    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Any:
        out = attention(q, k, v, mask, scores, scale)
        if second == "nothing":
            return out, None
        if second == "weights":
            return out, torch.zeros(*q.shape[:3], k.shape[2])
        allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        group = q.shape[1] // k.shape[1]
        s = q.float() @ k.float().repeat_interleave(group, 1).transpose(-1, -2) * scale
        lse = s.masked_fill(~allowed, -math.inf).logsumexp(-1)
        return Output(out, lse) if second == "Output" else [out, lse] if second == "list" else (out, lse)

    return fn


def _in_double(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q.double(), k.double(), v.double(), mask, scores, scale).to(q.dtype)


_compiled = torch.compile(attention, backend="aot_eager", fullgraph=True)


def _core_compiled(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    if scores:
        raise NotImplementedError("takes no score changes")
    return _compiled(q, k, v, mask, (), scale)


def _grad_mode_off(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    # Leaves the grad mode as it found it only by luck: the caller's `with` restores it.
    out = attention(q, k, v, mask, scores, scale)
    torch.set_grad_enabled(False)
    return out


STYLES: dict[str, Callable[..., Any]] = {
    "checkpoint, reentrant": _checkpointed(reentrant=True),
    "checkpoint, not reentrant": _checkpointed(reentrant=False),
    "checkpoint that closes over k and v": _keys_by_closure,
    "out transposed in memory": _transposed_out,
    "out as a slice of a padded tensor": _slice_of_padded,
    "hooks on the arguments, once differentiable": _hooked,
    "frees its tensors in the backward": _freeing,
    "requires_grad_ and retain_grad of q": _asks_for_gradients,
    "a forward that needs autograd": _by_autograd,
    "seeds the global generator": _seeds,
    "a backward that calls backward": _gradient_of_its_own,
    "a module with a parameter": Module(),
    "a partial": functools.partial(_with_more, more=None),
    "a pair of out and LSE": _also("lse"),
    "a list of out and LSE": _also("list"),
    "an Output with LSE": _also("Output"),
    "a pair of out and None": _also("nothing"),
    "a pair of out and weights": _also("weights"),
    "in float64": _in_double,
    "leaves the grad mode off": _grad_mode_off,
    "torch.compile": torch.compile(right, backend="aot_eager"),
    "torch.compile of the core, fullgraph": _core_compiled,
    "torch.compile, dynamic": torch.compile(right, backend="aot_eager", dynamic=True),
}
