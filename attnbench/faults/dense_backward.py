"""Dense gradients of a small case in float64, in steps that a fault can replace."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.faults.dense import Dense
from attnbench.judge.oracle import Exact
from attnbench.problem import Inputs


class DenseBackward:
    """The backward of one small case after a right forward.

    lse, delta [B, H, Q]; p, dp [B, H, Q, K]; slope is the derivative of the softcap at each score, or 1.
    """

    def __init__(self, inputs: Inputs, allowed: Tensor, right: Exact) -> None:
        assert inputs.dout is not None
        self.case, self.dense = inputs.case, Dense(inputs, allowed)
        self.scale = inputs.case.softmax_scale
        self.lse = right.lse.masked_fill(right.lse == -math.inf, 0.0)
        self.dout = inputs.dout.double()
        self.dp = self.dout @ self.dense.v.transpose(-1, -2)
        self.delta = (self.dout * right.out).sum(-1)
        self.p = self.weights()
        cap = self.dense.cap
        self.slope = 1.0 if cap is None else 1 - torch.tanh(self.dense.raw / cap) ** 2

    def weights(self, allowed: Callable[[], Tensor] | None = None, lse: Tensor | None = None) -> Tensor:
        """P under another mask, or with another LSE [B, H, Q]."""
        masked = self.dense.masked(allowed=None if allowed is None else allowed())
        return torch.exp(masked - (self.lse if lse is None else lse)[..., None])

    def ds(self, p: Tensor, delta: Tensor | None = None) -> Tensor:
        """dS from weights, the softcap's slope included."""
        delta = self.delta if delta is None else delta
        return p * (self.dp - delta[..., None]) * self.slope

    def by_head(self, x: Tensor) -> Tensor:
        """Gradients summed over each key head's query heads: [B, H, K, X] -> [B, Hkv, K, X]."""
        return x.unflatten(1, (self.case.kv_heads, self.case.group)).sum(2)

    def by_query_head(self, name: str, p: Tensor, ds: Tensor) -> Tensor:
        """dk or dv of each query head, [B, H, K, X]."""
        if name == "dv":
            return p.transpose(-1, -2) @ self.dout
        return ds.transpose(-1, -2) @ self.dense.q * self.scale

    def gradient(self, name: str, p: Tensor, ds: Tensor) -> Tensor:
        """dq, dk or dv from weights and dS."""
        if name == "dq":
            return ds @ self.dense.k * self.scale
        return self.by_head(self.by_query_head(name, p, ds))

    def with_heads(self, name: str, heads: Tensor) -> Tensor:
        """dq, dk or dv if the backward reads these key heads, int64 [H], and adds to them."""
        first = torch.arange(self.case.kv_heads, device=heads.device) * self.case.group
        k, v = (x[:, first][:, heads] for x in (self.dense.k, self.dense.v))
        s = self.dense.masked(self.dense.scored(self.dense.product(k=k)))
        p = torch.exp(s - self.lse[..., None])
        ds = p * (self.dout @ v.transpose(-1, -2) - self.delta[..., None]) * self.slope
        if name == "dq":
            return ds @ k * self.scale
        by_query = self.by_query_head(name, p, ds)
        return torch.zeros_like(by_query[:, : self.case.kv_heads]).index_add_(1, heads, by_query)

    def accumulated(self, name: str, change: Callable[[Tensor], Tensor], tile: int) -> Tensor:
        """dq, dk or dv added up tile by tile, and changed after each."""
        ds = self.ds(self.p)
        total: Tensor | float = 0.0
        if name == "dq":
            for some, k in zip(ds.split(tile, -1), self.dense.k.split(tile, 2), strict=True):
                total = change(some @ k * self.scale + total)
        else:
            left, right = (self.p, self.dout) if name == "dv" else (ds, self.dense.q * self.scale)
            for some, x in zip(left.split(tile, 2), right.split(tile, 2), strict=True):
                total = change(self.by_head(some.transpose(-1, -2) @ x) + total)
        return torch.as_tensor(total)

    def not_normalised(self) -> Tensor:
        """exp(S - max): P without the row sum."""
        s = self.dense.masked()
        top = s.amax(-1, keepdim=True)
        return torch.exp(s - top.masked_fill(top == -math.inf, 0.0))
