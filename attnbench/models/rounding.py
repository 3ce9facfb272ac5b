"""The effect of rounding alone on a layer or a model: its float64 program with noise of a dtype's roundings.

The judge computes the noise of one attention from its formulae; a model is a program. Here the program runs in
float64, and the inputs, output and gradients of every arithmetic operation are moved by up to one rounding of the
dtype, each element independently. A sum over inputs so moved carries the random walk of its partial sums. The
spread of several such runs about the float64 run without noise is what a right implementation may differ by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from attnbench.judge.verdict import MAX_Z, RMS_Z
from attnbench.layer.weights import attention_weights
from attnbench.problem import Full, Mask, Score

UNIT = {"fp32": 2.0**-24, "bf16": 2.0**-8, "fp16": 2.0**-11}  # half a unit in the last place, relative
SUMS = 2.0 * UNIT["fp32"]  # the judge's factor on the roundings inside a sum, which float32 keeps
RUNS = 16

ARITHMETIC = frozenset(
    {
        "linear matmul __matmul__ bmm einsum addmm baddbmm",
        "softmax log_softmax layer_norm rms_norm gelu silu tanh exp log sigmoid cross_entropy",
        "add __add__ __radd__ sub __sub__ __rsub__ mul __mul__ __rmul__ div __truediv__ pow __pow__",
        "mean sum rsqrt sqrt scaled_dot_product_attention",
    }
)
OPERATIONS = frozenset(name for group in ARITHMETIC for name in group.split())


class _Moved(torch.autograd.Function):
    """x (1 + size U) with U uniform in -1 to 1, and the same for its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: float, noise: RoundingNoise) -> Tensor:
        ctx.size, ctx.noise = size, noise
        return noise.moved(x, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        return ctx.noise.moved(grad, ctx.size), None, None


class RoundingNoise(TorchFunctionMode):
    """`with RoundingNoise(seed, "fp32"):` float64 arithmetic carries the noise of the dtype's roundings.

    Sums run in float32 whatever the dtype. `attention` is the dtype of `exact_attention` if it differs: q, k, v and
    the output's gradient are then rounded to it as well.
    """

    active: RoundingNoise | None = None

    def __init__(
        self, seed: int, dtype: str, device: torch.device | str = "cpu", attention: str | None = None
    ) -> None:
        super().__init__()
        self.unit = UNIT[dtype]
        self.attention_unit = UNIT[attention or dtype]
        self.casts = (attention or dtype) != dtype
        self.generator = torch.Generator(device).manual_seed(seed)

    def __enter__(self) -> RoundingNoise:
        RoundingNoise.active = self
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        RoundingNoise.active = None
        super().__exit__(*error)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in OPERATIONS:
            return func(*args, **kwargs)
        moved_args = [self._move(x, SUMS) for x in args]
        return self._move(func(*moved_args, **kwargs), self.unit)

    def _move(self, x: Any, size: float) -> Any:
        if isinstance(x, (list, tuple)):
            return type(x)(self._move(one, size) for one in x)
        if not isinstance(x, Tensor) or x.dtype != torch.float64 or x.ndim == 0:
            return x
        return _Moved.apply(x, size, self)

    def moved(self, x: Tensor, size: float) -> Tensor:
        """x with each element changed by up to `size` of itself."""
        changed = x + size * x * self.uniform(x)
        # A mask's -inf, or the smallest number in its place, is no rounded result.
        return torch.where(changed.isfinite(), changed, x)

    def uniform(self, like: Tensor) -> Tensor:
        """Numbers between -1 and 1 in the shape of `like`."""
        with torch._C.DisableTorchFunction():
            drawn = torch.rand(like.shape, generator=self.generator, dtype=like.dtype, device=like.device)
            return 2 * drawn - 1


class _Exact(torch.autograd.Function):
    """Attention and the gradients of FlashAttention (arXiv 2205.14135, appendix B), with noise if a mode is active.

    Written out, because autograd's softmax gives dS = 0 exactly where P is 1; kernels, which compute
    delta = rowsum(dO * O) apart from dP, do not.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Mask, scale: float) -> Tensor:
        noise = RoundingNoise.active
        with torch._C.DisableTorchFunction():
            if noise is not None and noise.casts:
                q, k, v = (noise.moved(x, noise.attention_unit) for x in (q, k, v))
            p = attention_weights(q, k, mask, scale)  # [B, H, Q, K]
            if noise is not None:
                unit = noise.attention_unit
                scores = torch.einsum("bhqd,bhkd->bhqk", q, k).abs() * scale
                sums = torch.einsum("bhqd,bhkd->bhqk", q * q, k * k).sqrt() * scale
                moved = p * torch.exp(noise.uniform(p) * (unit * scores + SUMS * sums))
                total = moved.sum(dim=-1, keepdim=True)
                p = noise.moved(moved / torch.where(total == 0, 1.0, total), unit)
            out = torch.einsum("bhqk,bhkd->bhqd", p, v)
            if noise is not None:
                sums = torch.einsum("bhqk,bhkd->bhqd", p**2, v * v).sqrt()
                out = noise.moved(out, unit) + SUMS * sums * noise.uniform(out)
        ctx.save_for_backward(q, k, v, p, out)
        ctx.scale, ctx.noise = scale, noise
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, p, out = ctx.saved_tensors
        noise = ctx.noise
        with torch._C.DisableTorchFunction():
            if noise is not None and noise.casts:
                dout = noise.moved(dout, noise.attention_unit)
            dp = torch.einsum("bhqd,bhkd->bhqk", dout, v)
            delta = (dout * out).sum(dim=-1, keepdim=True)
            if noise is not None:
                unit = noise.attention_unit
                # A dense backend rounds dP and takes delta from P and dP, a fused one from dO and O.
                dp = noise.moved(dp, unit)
                dp = dp + SUMS * torch.einsum("bhqd,bhkd->bhqk", dout**2, v**2).sqrt() * noise.uniform(dp)
                delta = noise.moved(delta, unit)
                delta = delta + SUMS * (dout * out).norm(dim=-1, keepdim=True) * noise.uniform(delta)
                p = _recomputed(p, torch.einsum("bhqd,bhkd->bhqk", q, k) * ctx.scale, noise)
                dout, q, k = (noise.moved(x, SUMS) for x in (dout, q, k))
            ds = p * (dp - delta)
            if noise is not None:
                ds, p = noise.moved(ds, unit), noise.moved(p, unit)
            dq = torch.einsum("bhqk,bhkd->bhqd", ds, k) * ctx.scale
            dk = torch.einsum("bhqk,bhqd->bhkd", ds, q) * ctx.scale
            dv = torch.einsum("bhqk,bhqd->bhkd", p, dout)
            if noise is not None:
                dq, dk, dv = (noise.moved(x, unit) for x in (dq, dk, dv))
        return dq, dk, dv, None, None


def _recomputed(p: Tensor, scores: Tensor, noise: RoundingNoise) -> Tensor:
    """P as a backward recomputes it, exp(S - LSE), in float32: the error of the LSE is common to a row.

    If gradients cancel over a row (that of a key bias is 0), this error is what remains.
    """
    lse = torch.where(p > 0, scores - p.log(), -torch.inf).amax(dim=-1, keepdim=True)
    lse = torch.where(lse.isfinite(), lse, 0.0)
    of_row = (1 + lse.abs()) * noise.uniform(lse)
    return p * (1 + SUMS * (of_row + scores.abs() * noise.uniform(p)))


def exact_attention(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Mask = Full(), scores: Sequence[Score] = (), scale: float
) -> Tensor:
    """Attention computed plainly, in the dtype of its tensors (float64 for references): [B, H, Q, Dv]."""
    if scores:
        raise NotImplementedError("takes no score changes")
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, dim=1) if group > 1 else x for x in (k, v))
    return _Exact.apply(q, k, v, mask, scale)


@dataclass(frozen=True)
class Spread:
    """The exact values of one tensor, and how far rounding alone moves each: float64."""

    value: Tensor
    sigma: Tensor

    def over_budget(self, tensor: Tensor, contract: str = "dense") -> float:
        """The error of the tensor in units of what is allowed: right up to 1."""
        if tensor.shape != self.value.shape or not bool(tensor.isfinite().all()):
            return float("inf")
        z = (tensor.detach().double() - self.value).abs() / self.sigma.clamp_min(
            torch.finfo(torch.float64).tiny
        )
        return max(float(z.max()) / MAX_Z[contract], float(z.square().mean().sqrt()) / RMS_Z)


def spread(program: Callable[[], dict[str, Tensor]], dtype: str, runs: int = RUNS) -> dict[str, Spread]:
    """The spread of each tensor that the float64 program returns by name.

    As in the judge, half of each element's variance is the mean over its last dimension, since a few runs estimate
    the variance of one element badly; every value also takes one rounding of its own.
    """
    exact = {name: x.detach() for name, x in program().items()}
    moments = {name: torch.zeros_like(x) for name, x in exact.items()}
    for seed in range(runs):
        with RoundingNoise(seed, dtype, next(iter(exact.values())).device):
            noisy = program()
        for name, x in noisy.items():
            moments[name] += (x.detach() - exact[name]).square() / runs
    spreads = {}
    for name, x in exact.items():
        moment = moments[name]
        if x.ndim:
            moment = (moment + moment.mean(dim=-1, keepdim=True)) / 2
        spreads[name] = Spread(x, moment.sqrt() + UNIT[dtype] / 2 * x.abs())
    return spreads
