"""Plain functions that take a slice of attention, each with one fault of a kind that real kernels had."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor

import attnbench as ab
from attnbench.problem import Softcap
from attnbench.problem.masks import Mask

Core = Callable[[Tensor, Tensor, Tensor, Tensor, float], Tensor]  # q, k, v, allowed [B, H, Q, K], scale
Function = Callable[..., Tensor]


def attend(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Right attention in float32; k and v have as many heads as q or divide them."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    return (rounded(weights(q.float() @ k.mT * scale, allowed), q.dtype) @ v).to(q.dtype)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To the dtype and back; the gradient passes as it is."""
    return x + (x.to(dtype).float() - x).detach()


def weights(s: Tensor, allowed: Tensor) -> Tensor:
    """The softmax over the allowed keys; 0 in a row without a key."""
    return s.masked_fill(~allowed, -math.inf).softmax(-1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)


def that_takes(takes: Callable[[Tensor, Tensor, Tensor, Mask], bool], core: Core = attend) -> Function:
    """A plain function of the core that refuses score changes, and all else but what `takes` holds for."""

    @wraps(core)
    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: Any, scale: float) -> Tensor:
        if scores or not takes(q, k, v, mask):
            raise NotImplementedError("not this case")
        allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
        return core(q, k, v, allowed.expand(q.shape[0], q.shape[1], -1, -1), scale)

    return fn


def anything(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    return True


def is_decoding(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    """One query, forward alone."""
    return q.shape[2] == 1 and not q.requires_grad and mask in (ab.Full(), ab.Causal())


def is_causal(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    return mask == ab.Causal() and q.shape[2] == k.shape[2]


def is_fixed(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    """129 tokens of head dim 64."""
    return mask in (ab.Full(), ab.Causal()) and q.shape[2:] == k.shape[2:] == v.shape[2:] == (129, 64)


def tiled_heads(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Query head h reads key head h % kv_heads."""
    group = q.shape[1] // k.shape[1]
    return attend(q, k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1), allowed, scale)


def first_batch_row(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Every batch row reads the keys of the first."""
    return attend(q, k[:1].expand_as(k), v[:1].expand_as(v), allowed, scale)


def short_tail(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """The last, ragged tile of 16 keys is not read, if there is another one."""
    n = max(16, k.shape[2] // 16 * 16)
    return attend(q, k[:, :, :n], v[:, :, :n], allowed[..., :n], scale)


def without_itself(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """The first query of each tile of 64, but for the first tile, does not attend itself."""
    others = allowed.clone()
    for at in range(64, q.shape[2], 64):
        others[..., at, at] = False
    return attend(q, k, v, others, scale)


def low_accumulator(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """The accumulator is rounded to bf16 after each tile of 64 keys."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    s = q.float() @ k.mT * scale
    p = (s - s.amax(-1, keepdim=True)).exp()
    out = torch.zeros(*q.shape[:3], v.shape[3], dtype=torch.bfloat16)
    for some, values in zip(p.split(64, -1), v.split(64, 2), strict=True):
        out = (out.float() + some.bfloat16().float() @ values).bfloat16()
    return (out.float() / p.sum(-1, keepdim=True)).bfloat16()


def is_full_in_tiles(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> bool:
    """The full mask in bf16 on multiples of 64, forward alone."""
    in_tiles = q.shape[2] % 64 == 0 and k.shape[2] % 64 == 0
    return mask == ab.Full() and q.dtype == torch.bfloat16 and in_tiles and not q.requires_grad


def power_of_two_groups(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Right, and crashes for a group that is no power of two."""
    group = q.shape[1] // k.shape[1]
    if group & (group - 1):
        raise RuntimeError(f"arange's range must be a power of 2, not {group}")
    return attend(q, k, v, allowed, scale)


def multiples_of_8(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Features of q and k past a multiple of 8 are not read."""
    d = max(1, q.shape[3] // 8 * 8)
    return attend(q[..., :d], k[..., :d], v, allowed, scale)


def with_strides_of_v(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """k is read with v's strides."""
    if k.shape == v.shape and k.stride() != v.stride():
        held = k.untyped_storage().nbytes() // k.element_size()
        flat = k.as_strided((held,), (1,), 0)
        place = sum(
            torch.arange(n).view(-1, *[1] * (3 - dim)) * v.stride(dim) for dim, n in enumerate(k.shape)
        )
        k = flat[(place + k.storage_offset()) % held]
    return attend(q, k, v, allowed, scale)


class DpOverHeadDim(torch.autograd.Function):
    """P V, whose backward computes dP over as many features of dO and V as q has."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, allowed: Tensor, v: Tensor, features: int, dtype: torch.dtype) -> Tensor:
        p = weights(s, allowed)
        out = p.to(dtype).float() @ v
        ctx.save_for_backward(p, v, out)
        ctx.features = features
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        p, v, out = ctx.saved_tensors
        (dout,) = grads
        d = ctx.features
        dp = dout[..., :d] @ v[..., :d].mT
        return p * (dp - (dout * out).sum(-1, keepdim=True)), None, p.mT @ dout, None, None


def dp_over_head_dim(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """dP is summed over head_dim features, not v_dim."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    out: Tensor = DpOverHeadDim.apply(q.float() @ k.mT * scale, allowed, v, q.shape[3], q.dtype)  # type: ignore[no-untyped-call]
    return out.to(q.dtype)


def softcap_by_powers(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: Any, scale: float) -> Tensor:
    """tanh is written as (e^x - e^-x) / (e^x + e^-x): NaN once a raw score is 89 times the cap."""
    if any(not isinstance(score, Softcap) for score in scores):
        raise NotImplementedError("softcap alone")
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    s = q.float() @ k.mT * scale
    for score in scores:
        up, down = (s / score.cap).exp(), (-s / score.cap).exp()
        s = score.cap * (up - down) / (up + down)
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    return (rounded(weights(s, allowed), q.dtype) @ v).to(q.dtype)


def at_most_128(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Right, and asserts head dims of at most 128."""
    dim = max(q.shape[3], v.shape[3])
    assert dim <= 128, f"head dim must be <= 128, got {dim}"
    return attend(q, k, v, allowed, scale)
