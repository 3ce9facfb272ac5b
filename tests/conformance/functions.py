"""Plain functions and backends to check: right ones, and the same with a fault."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import attnbench as ab
from attnbench.backend import Backend, Capabilities, FunctionBackend, Refusal
from attnbench.problem import Case


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, scores: Any, scale: float, **fault: Any) -> Tensor:
    """Plain attention in float32, with the fault that a test asks for."""
    if scores:
        raise NotImplementedError("takes no score changes")
    group = q.shape[1] // k.shape[1]
    if fault.get("tiled"):
        k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)
    else:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if fault.get("strict"):
        allowed = allowed & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(
            k.shape[2] - q.shape[2] - 1
        )
    if fault.get("top_left"):
        allowed = ab.Causal("top_left").materialize(1, 1, q.shape[2], k.shape[2])
    if fault.get("unmasked"):
        allowed = torch.ones_like(allowed)
    s = q.float() @ k.float().transpose(-1, -2) * fault.get("factor", scale)
    p = torch.softmax(s.masked_fill(~allowed, -math.inf), -1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (p.to(q.dtype).float() @ v.float()).to(q.dtype)


def right(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, k, v, mask, scores, scale)


def with_fault(**fault: Any) -> Callable[..., Tensor]:
    def faulty(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return attention(q, k, v, mask, scores, scale, **fault)

    return faulty


class Careful(Backend):
    """Right, and declares one mask and one dtype."""

    name = "careful"
    capabilities = Capabilities(
        masks=frozenset({"causal"}),
        combinations=False,
        scores=frozenset(),
        dtypes=frozenset({"bf16"}),
        backward=False,
    )
    fault: dict[str, Any] = {}

    def prepare(self, case: Case, inputs: Any) -> Any:
        fn = with_fault(**self.fault)
        return FunctionBackend(fn, "careful").prepare(case, inputs)


class WithoutBackward(Careful):
    """Declares a backward, and refuses it on this device."""

    name = "without_backward"
    capabilities = replace(Careful.capabilities, backward=True)

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        return Refusal("no backward here") if case.direction == "fwd_bwd" else super().refuses(case, device)
