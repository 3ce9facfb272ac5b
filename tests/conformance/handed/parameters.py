"""Plain functions with every mask and score change, and faults in how they read their parameters at each call."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.problem import ALiBi, Bias, Padding, PrefixLM, Sink, SlidingWindow, Softcap
from attnbench.problem.masks import Mask
from attnbench.selftest.mutants.right import weighted_values
from tests.conformance.handed.functions import Function, rounded

Reads = Callable[[Any, Tensor], Any]  # a parameter and q -> what is computed with it


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask, scores: Any, scale: float) -> Tensor:
    """Right attention in float32."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    s = (q.float() @ k.mT) * scale
    return weighted_values(s, v, mask, scores, lambda p: rounded(p, q.dtype)).to(q.dtype)


def right(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: Any, scale: float) -> Tensor:
    return attend(q, k, v, mask, scores, scale)


def reading(*, mask: Reads | None = None, score: Reads | None = None, scale: Reads | None = None) -> Function:
    """Right but for how it reads a mask, each score change, or the scale."""

    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: Any, scale: float) -> Tensor:
        mask = read_mask(mask, q)
        scores = tuple(s for s in (read_score(s, q) for s in scores) if s is not None)
        return attend(q, k, v, mask, scores, read_scale(scale, q))

    as_given: Reads = lambda value, q: value  # noqa: E731
    read_mask, read_score, read_scale = mask or as_given, score or as_given, scale or as_given
    return fn


def kept(kind: type, by: Callable[[Tensor], Any] = lambda q: (q.shape[-1], q.dtype)) -> Reads:
    """The first of a kind stays for calls that agree in head dim and dtype."""
    first: dict[Any, Any] = {}
    return lambda value, q: first.setdefault(by(q), value) if isinstance(value, kind) else value


def by_shape(q: Tensor) -> Any:
    return q.shape, q.dtype


def with_sides(unlimited: int | None = None, zero: int | None = 0) -> Reads:
    """A window alone whose unlimited sides, or sides of 0, are read as another number (None: unlimited)."""

    def read(mask: Mask, q: Tensor) -> Mask:
        if not isinstance(mask, SlidingWindow):
            return mask
        other = SlidingWindow(mask.left, mask.right)
        for side in ("left", "right"):
            given = getattr(mask, side)
            taken = unlimited if given is None else zero if given == 0 else given
            object.__setattr__(other, side, taken)
        return other

    return read


def no_lengths_of_0(mask: Mask, q: Tensor) -> Mask:
    padded = isinstance(mask, Padding) and not any(mask.lengths)
    return Padding([mask_len(q)] * q.shape[0]) if padded else mask


def mask_len(q: Tensor) -> int:
    return q.shape[2]


def not_given(score: Any, q: Tensor) -> Any:
    """Slopes and sinks of 0 are those that a caller did not give."""
    if isinstance(score, ALiBi) and not any(score.slopes_for(q.shape[1])):
        return ALiBi()
    if isinstance(score, Sink) and not bool(score.tensor.any()):  # type: ignore[union-attr]
        return None
    return score


class _Node(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gets: Any, mask: Mask, scale: float, *tensors: Tensor) -> Tensor:
        ctx.gets, ctx.mask, ctx.scale = gets, mask, scale
        ctx.save_for_backward(*tensors)
        return _with_tensors(tensors, mask, scale)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            leaves = [x.detach().requires_grad_() for x in ctx.saved_tensors]
            out = _with_tensors(leaves, ctx.mask, ctx.scale)
        made = torch.autograd.grad(out, leaves, dout)
        gets = ctx.gets(ctx.needs_input_grad[3:])
        return (None, None, None, *(x if does else None for x, does in zip(made, gets, strict=True)))


def _with_tensors(tensors: Any, mask: Mask, scale: float) -> Tensor:
    q, k, v, *bias = tensors
    return attend(q, k, v, mask, tuple(Bias(x) for x in bias), scale)


def giving(gets: Callable[[Any], Any]) -> Function:
    """Right but for which inputs get a gradient, from which of q, k, v (and a bias) require one."""

    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: Any, scale: float) -> Tensor:
        if any(not isinstance(s, Bias) for s in scores):
            raise NotImplementedError("takes a bias alone")
        return _Node.apply(gets, mask, scale, q, k, v, *(s.tensor for s in scores))  # type: ignore[no-any-return]

    return fn


MASKS, SCALES, SCORES = "changed_masks_are_read", "changed_scales_are_read", "changed_scores_are_read"
SOME = "some_gradients_are_those_of_all"
KEPT, NOT_GIVEN, MINUS_1 = "of an earlier call is kept", "taken for 'not given'", "given as -1"
ANOTHER = "decides by another input"
# Makes the function (with nothing kept yet), the property that finds its fault, and a part of the cause.
FAULTS: dict[str, tuple[Callable[[], Function], str, str]] = {
    "softcap kept by head dim": (lambda: reading(score=kept(Softcap)), SCORES, f"softcap {KEPT}"),
    "slopes kept by shape": (lambda: reading(score=kept(ALiBi, by_shape)), SCORES, f"slope {KEPT}"),
    "sink kept by head dim": (lambda: reading(score=kept(Sink, by_shape)), SCORES, f"sink {KEPT}"),
    "bias kept by shape": (lambda: reading(score=kept(Bias, by_shape)), SCORES, f"bias {KEPT}"),
    "scale kept by head dim": (lambda: reading(scale=kept(float)), SCALES, f"scale {KEPT}"),
    "window kept by shape": (
        lambda: reading(mask=kept(SlidingWindow, by_shape)),
        MASKS,
        f"window mask {KEPT}",
    ),
    "lengths kept by shape": (lambda: reading(mask=kept(Padding, by_shape)), MASKS, f"padding mask {KEPT}"),
    "prefix kept by shape": (lambda: reading(mask=kept(PrefixLM, by_shape)), MASKS, f"prefix mask {KEPT}"),
    "scale 0": (lambda: reading(scale=lambda s, q: s or q.shape[-1] ** -0.5), SCALES, NOT_GIVEN),
    "negative scale": (lambda: reading(scale=lambda s, q: abs(s)), SCALES, "a negative scale"),
    "huge scale": (lambda: reading(scale=lambda s, q: min(s, 10.0)), SCALES, "a huge scale"),
    "window side of 0": (lambda: reading(mask=with_sides(zero=None)), MASKS, NOT_GIVEN),
    "lengths of 0": (lambda: reading(mask=no_lengths_of_0), MASKS, NOT_GIVEN),
    "slopes and sinks of 0": (lambda: reading(score=not_given), SCORES, NOT_GIVEN),
    "unlimited side is -1": (lambda: reading(mask=with_sides(unlimited=-1)), MASKS, MINUS_1),
    "unlimited side is 0": (lambda: reading(mask=with_sides(unlimited=0)), MASKS, "taken for 0"),
    "dv if k asks": (lambda: giving(lambda n: (n[0], n[1], n[1], *n[3:])), SOME, ANOTHER),
    "dq if v asks": (lambda: giving(lambda n: (n[2], n[1], n[2], *n[3:])), SOME, ANOTHER),
    "all or nothing": (lambda: giving(lambda n: (all(n),) * len(n)), SOME, ANOTHER),
    "dbias if q asks": (lambda: giving(lambda n: (*n[:3], *(n[:1] * len(n[3:])))), SOME, ANOTHER),
}
