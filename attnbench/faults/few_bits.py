"""Faults of precision in the forward: one step rounded to few bits reproduces the error itself, not its size alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from attnbench.faults.causes import Hypothesis
from attnbench.faults.dense import TILES, Dense
from attnbench.judge.rounding import UNITS

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
CAUSE = "low precision"


def of_rounding(dense: Dense) -> Iterator[Hypothesis]:
    """One step rounded: q after its scale, scores, P, row sum and its reciprocal, accumulator, exp."""
    for name, dtype in DTYPES.items():
        yield from _of_scores(dense, name, partial(rounded, dtype))
        for step in ("row sum", "reciprocal of the row sum", "out before its division"):
            yield Hypothesis(CAUSE, f"the {step} is rounded to {name}", partial(_softmax, dense, dtype, step))
        if UNITS[name] > UNITS[dense.case.dtype]:
            yield Hypothesis(CAUSE, f"P is rounded to {name}", partial(_softmax, dense, dtype, "P"))
        for tile in TILES:
            if tile < dense.case.k_len:
                words = f"the accumulator is rounded to {name} after each tile of {tile} keys"
                yield Hypothesis(CAUSE, words, partial(_accumulated, dense, dtype, tile, False))
                words = f"partial results of {tile} keys are merged in {name}"
                yield Hypothesis(CAUSE, words, partial(_accumulated, dense, dtype, tile, True))
        for splits in (2, 4, 8, 16):
            tile = -(-dense.case.k_len // splits)
            if 1 < tile < dense.case.k_len and tile not in TILES:
                words = f"partial results of {splits} splits are merged in {name}"
                yield Hypothesis(CAUSE, words, partial(_accumulated, dense, dtype, tile, True))
    for least in (1e-2, 1e-3, 1e-4):
        words = f"weights below {least:g} are dropped"
        yield Hypothesis(CAUSE, words, partial(_softmax, dense, torch.float64, "P", least))
    yield Hypothesis(CAUSE, "P is kept in 8 bits (e4m3)", partial(_softmax, dense, torch.float8_e4m3fn, "P"))
    words = "exp2's log2(e) is kept in few bits: 1.4424 instead of 1.442695"
    few = float(torch.tensor(math.log2(math.e), dtype=torch.float16)) / math.log2(math.e)
    yield dense.if_scores_are(CAUSE, words, lambda: dense.s * few)
    words = "exp is a linear approximation between powers of two (off by up to 6 %)"
    yield Hypothesis(CAUSE, words, partial(_softmax, dense, torch.float64, "exp"))


def rounded(dtype: torch.dtype, x: Tensor) -> Tensor:
    """To the dtype and back to float64."""
    return x.to(dtype).double()


def _of_scores(dense: Dense, name: str, to: Callable[[Tensor], Tensor]) -> Iterator[Hypothesis]:
    """Scores, or what they are made of, in few bits."""
    scale, cap = dense.case.softmax_scale, dense.cap
    root = math.sqrt(abs(scale))

    def of(words: str, s: Callable[[], Tensor]) -> Hypothesis:
        return dense.if_scores_are(CAUSE, words, s)

    words = f"q is scaled and rounded to {name} before the product"
    yield of(words, lambda: dense.scored(dense.product(to(dense.q * scale), scale=1.0)))
    words = f"q and k are both scaled by sqrt(scale) and rounded to {name}"
    yield of(words, lambda: dense.scored(dense.product(to(dense.q * root), to(dense.k * root), 1.0)))
    words = f"scores are rounded to {name}"
    yield of(words, lambda: to(dense.s))
    yield of(words, lambda: dense.scored(to(dense.raw)))
    if scale:
        yield of(words, lambda: to(dense.scored(to(to(dense.raw / scale) * scale))))
    if cap is not None:
        rest = dense.s - dense.capped(dense.raw)
        words = f"softcap is computed in {name}"
        yield of(words, lambda: rest + to(cap * to(torch.tanh(to(dense.raw / cap)))))


def _weights(dense: Dense) -> tuple[Tensor, Tensor]:
    """exp(S - max) [B, H, R, K] and its row sum [B, H, R, 1], the sink included."""
    s = dense.masked()
    top = s.amax(-1, keepdim=True)
    if dense.sink is not None:
        top = torch.maximum(top, dense.sink[..., None])
    top = top.masked_fill(top == -math.inf, 0.0)
    p = torch.exp(s - top)
    total = p.sum(-1, keepdim=True)
    return p, total if dense.sink is None else total + torch.exp(dense.sink[..., None] - top)


def _softmax(dense: Dense, dtype: torch.dtype, step: str, least: float = 0.0) -> Tensor:
    """out with one step of the softmax rounded, or weights below `least` dropped."""
    to = partial(rounded, dtype)
    p, total = _weights(dense)
    whole = total.masked_fill(total == 0, 1.0)
    if step == "exp":
        # 2^x is (1 + fraction) 2^floor.
        x = p.clamp_min(1e-300).log2()
        linear = torch.where(p == 0, p, torch.exp2(x.floor()) * (1 + x - x.floor()))
        return linear @ dense.v / linear.sum(-1, keepdim=True).masked_fill(total == 0, 1.0)
    if step == "P":
        return (to(p) * (p >= least)) @ dense.v / whole
    if step == "row sum":
        return p @ dense.v / to(whole)
    return p @ dense.v * to(1 / whole) if step == "reciprocal of the row sum" else to(p @ dense.v) / whole


def _accumulated(dense: Dense, dtype: torch.dtype, tile: int, normalised: bool) -> Tensor:
    """out added up tile by tile and rounded after each; `normalised`: each partial result is divided first."""
    to = partial(rounded, dtype)
    s = dense.masked()
    top, total = torch.full_like(s[..., :1], -math.inf), torch.zeros_like(s[..., :1])
    out: Tensor | float = 0.0
    for some, v in zip(s.split(tile, -1), dense.v.split(tile, 2), strict=True):
        new = torch.maximum(top, some.amax(-1, keepdim=True))
        shift = new.masked_fill(new == -math.inf, 0.0)
        alpha, p = torch.exp(top - shift), torch.exp(some - shift)
        part = p.sum(-1, keepdim=True)
        more = total * alpha + part
        if normalised:
            whole = more.masked_fill(more == 0, 1.0)
            own = to(p @ v / part.masked_fill(part == 0, 1.0))
            out = to(out * (total * alpha / whole) + own * (part / whole))
        else:
            out = to(out * alpha + p @ v)
        top, total = new, more
    whole = total
    if dense.sink is not None:
        new = torch.maximum(top, dense.sink[..., None])
        alpha = torch.exp(top - new)
        whole = total * alpha + torch.exp(dense.sink[..., None] - new)
        out = out * (total * alpha / whole) if normalised else out * alpha
    return torch.as_tensor(out if normalised else out / whole.masked_fill(whole == 0, 1.0))
