"""Hypotheses of a fault in the backward alone: a scale, delta, the mask, tiles, heads that are not summed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from attnbench.conformance.diagnosis.causes import Hypothesis
from attnbench.conformance.diagnosis.dense import TILES, Dense
from attnbench.conformance.diagnosis.kernels import ignoring_strides
from attnbench.conformance.diagnosis.masks import other_masks
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.problem import Inputs

ONLY = "gradients only"


def of_gradient(name: str, inputs: Inputs, allowed: Tensor, right: Exact) -> Iterator[Hypothesis]:
    """Changes of the backward alone, each with its exact gradient, for name "dq", "dk" or "dv".

    `allowed` are the pairs of the right mask, [B, H, Q, K].
    """
    case = inputs.case
    exact: Tensor = getattr(right, name)
    assert inputs.dout is not None
    scale = case.softmax_scale
    yield Hypothesis(ONLY, f"{name} is all zeros", lambda: torch.zeros_like(exact))
    if name != "dv":
        yield Hypothesis(ONLY, f"{name} lacks the scale", lambda: exact / scale)
        yield Hypothesis(ONLY, f"{name} has the scale twice", lambda: exact * scale)
    yield Hypothesis(ONLY, f"the sign of {name} is wrong", lambda: -exact)
    other = {"dk": right.dv, "dv": right.dk}.get(name)
    if other is not None and other.shape == exact.shape:
        yield Hypothesis("layout", "dk and dv are swapped", lambda: other)
    if not inputs.dout.is_contiguous():
        words = "dO's strides are ignored: it is read as if it were contiguous"
        read = replace(inputs, dout=ignoring_strides(inputs.dout))
        yield Hypothesis("layout", words, lambda: getattr(exact_attention(read), name))
    if name != "dq":
        for tile in TILES:
            if tile < case.k_len and case.k_len % tile:
                inside = torch.arange(case.k_len, device=exact.device)[:, None] < case.k_len // tile * tile
                words = f"{name} of the last, ragged tile of {tile} keys is never written"
                yield Hypothesis("tail tile", words, partial(torch.mul, exact, inside))
    yield from _Backward(inputs, allowed, right).faults(name)


class _Backward:
    # The dense backward of one small case in float64, in steps that a fault can replace.

    def __init__(self, inputs: Inputs, allowed: Tensor, right: Exact) -> None:
        self.case, self.dense = inputs.case, Dense(inputs, allowed)
        self.scale = inputs.case.softmax_scale
        self.lse = right.lse.masked_fill(right.lse == -math.inf, 0.0)
        assert inputs.dout is not None
        self.dout = inputs.dout.double()
        self.dp = self.dout @ self.dense.v.transpose(-1, -2)  # [B, H, Q, K]
        self.delta = (self.dout * right.out).sum(-1)  # [B, H, Q]
        self.p = self.weights()
        cap = next((score.cap for score in inputs.scores if score.kind == "softcap"), None)  # type: ignore[attr-defined]
        self.slope = 1.0 if cap is None else 1 - torch.tanh(self.dense.raw / cap) ** 2

    def by_head(self, x: Tensor) -> Tensor:
        """Gradients summed over each key head's query heads: [B, H, K, X] -> [B, Hkv, K, X]."""
        return x.unflatten(1, (self.case.kv_heads, self.case.group)).sum(2)

    def gradient(self, name: str, p: Tensor, ds: Tensor, reduce: bool = True) -> Tensor:
        """dq, dk or dv from weights and dS (which includes the softcap's slope)."""
        if name == "dq":
            return ds @ self.dense.k * self.scale
        by_query = (
            p.transpose(-1, -2) @ self.dout
            if name == "dv"
            else ds.transpose(-1, -2) @ self.dense.q * self.scale
        )
        return self.by_head(by_query) if reduce else by_query

    def ds(self, p: Tensor, delta: Tensor | None = None) -> Tensor:
        delta = self.delta if delta is None else delta
        return p * (self.dp - delta[..., None]) * self.slope

    def weights(self, allowed: Callable[[], Tensor] | None = None, lse: Tensor | None = None) -> Tensor:
        """P under another mask, or with another LSE [B, H, Q]."""
        masked = self.dense.masked(allowed=None if allowed is None else allowed())
        return torch.exp(masked - (self.lse if lse is None else lse)[..., None])

    def not_normalised(self) -> Tensor:
        """exp(S - max): P without the row sum."""
        s = self.dense.masked()
        top = s.amax(-1, keepdim=True)
        return torch.exp(s - top.masked_fill(top == -math.inf, 0.0))

    def faults(self, name: str) -> Iterator[Hypothesis]:
        """Faults of the backward, each with the gradient that results."""

        def of(
            words: str, weights: Callable[[], Tensor], ds: Callable[[Tensor], Tensor] = self.ds
        ) -> Hypothesis:
            def make() -> Tensor:
                p = weights()
                return self.gradient(name, p, ds(p))

            return Hypothesis(ONLY, words, make)

        p, dense, q_len = self.p, self.dense, self.case.q_len
        same = lambda: p  # noqa: E731
        if name != "dv":
            zero = torch.zeros_like(self.delta)
            yield of("delta is left out of dS", same, lambda p: self.ds(p, zero))
            yield of("softcap's derivative is missing", same, lambda p: p * (self.dp - self.delta[..., None]))
            features = self.case.head_dim
            if features < self.case.v_dim:
                dp = self.dout[..., :features] @ dense.v[..., :features].transpose(-1, -2)
                words = "dP is summed over head_dim features, not v_dim"
                yield of(words, same, lambda p: p * (dp - self.delta[..., None]) * self.slope)
            for rows in (1, *TILES):
                if rows < q_len:
                    words = f"the delta of the first {rows} rows is used for others"
                    first = _first_block(self.delta, rows)
                    yield of(words, same, partial(self.ds, delta=first))
        yield of("P is not masked in the backward", lambda: torch.exp(dense.s - self.lse[..., None]))
        yield of("P is not normalised in the backward", self.not_normalised)
        for rows in (1, *TILES):
            if rows < q_len:
                lse = _first_block(self.lse, rows)
                words = f"the LSE of the first {rows} rows is used for others"
                yield of(words, partial(self.weights, lse=lse))
        if self.case.scores:
            words = "the backward's scores lack the bias or softcap"
            yield of(words, lambda: torch.exp(dense.masked(dense.raw) - self.lse[..., None]))
        for _, words, pairs in other_masks(dense):
            yield of(f"in the backward alone, {words}", partial(self.weights, pairs))
        row = torch.arange(q_len, device=p.device)[:, None]
        for rows in TILES[:4]:
            for number in sorted({1, -(-q_len // rows) - 1} - {0}):
                kept = torch.div(row, rows, rounding_mode="floor") != number
                words = f"queries {number * rows} to {min(q_len, number * rows + rows)} do not count"
                yield of(words, partial(torch.mul, p, kept))
            if rows < q_len:
                last = row >= (q_len - 1) // rows * rows
                words = f"only the last tile of {rows} queries counts (= for +=)"
                yield of(words, partial(torch.mul, p, last))
        if self.case.group > 1 and name != "dq":
            heads = self.gradient(name, p, self.ds(p), reduce=False).unflatten(
                1, (self.case.kv_heads, self.case.group)
            )
            whose = f"{name} of a key head is"
            for words, make in (
                (
                    f"{whose} that of the last query head, not the sum of its group (GQA)",
                    partial(heads.select, 2, -1),
                ),
                (
                    f"{whose} that of the first query head, not the sum of its group (GQA)",
                    partial(heads.select, 2, 0),
                ),
                (f"{whose} averaged, not summed, over the group (GQA)", partial(heads.mean, 2)),
            ):
                yield Hypothesis("gqa mapping", words, make)


def _first_block(x: Tensor, rows: int) -> Tensor:
    """x [B, H, Q] with its first rows repeated for all others."""
    return x[:, :, torch.arange(x.shape[2], device=x.device) % rows]
