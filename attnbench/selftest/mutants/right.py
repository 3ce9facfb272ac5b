"""Right implementations, which must raise no alarm however they tile, order, split or round.

Under the FLASH contract: variants of `Tiled`, and torch's tiled kernel. Under DENSE: plain ones through autograd,
with the scale in different places. None shares code with the oracle.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from attnbench.backend.differentiable import FunctionBackend
from attnbench.backend.interface import Backend, Capabilities
from attnbench.backend.registry import resolve
from attnbench.problem import ALiBi, Bias, Case, Mask, RelativeBias, Score, Sink, Softcap
from attnbench.selftest.mutants.tiled import LOG2_E, Statistics, Tiled, TiledBackend, Tiling, variant


@dataclass(frozen=True)
class Right:
    """A right implementation. `is_defective` tells on which cases its library is wrong, `defect` says how."""

    name: str
    make: Callable[[], Backend]
    is_defective: Callable[[Case], bool] = lambda case: False
    defect: str = ""


def _lazy_update(self: Tiled, m: Tensor, row_sum: Tensor, acc: Tensor, s: Tensor, v: Tensor) -> Statistics:
    # FlashAttention-4: keep the old maximum until the new one is 2^8 times as large; float32 has the range.
    new = self.maximum(m, s)
    new = torch.where((new - m) * LOG2_E > 8, new, torch.where(m == -torch.inf, new, m))
    shift = new.masked_fill(new == -torch.inf, 0.0)
    alpha, p = self.exp(m - shift), self.exp(s - shift)
    return new, self.add_sum(row_sum, alpha, p), self.add_values(acc, alpha, p, v)


def _normalised_update(
    self: Tiled, m: Tensor, row_sum: Tensor, acc: Tensor, s: Tensor, v: Tensor
) -> Statistics:
    # FlashAttention-1 keeps the accumulator divided by the row sum (arXiv 2205.14135, algorithm 1, line 12).
    new = self.maximum(m, s)
    shift = new.masked_fill(new == -torch.inf, 0.0)
    alpha, p = self.exp(m - shift), self.exp(s - shift)
    total = self.add_sum(row_sum, alpha, p)
    safe = total.masked_fill(total == 0, 1.0)
    return new, total, acc * (alpha * row_sum / safe) + (self.rounded(p) @ v) / safe


def _already_normalised(self: Tiled, m: Tensor, row_sum: Tensor, acc: Tensor) -> tuple[Tensor, Tensor]:
    return acc, (m + torch.log(row_sum)).squeeze(-1)


def _sink_normalised(self: Tiled, m: Tensor, row_sum: Tensor, acc: Tensor) -> Statistics:
    new, total, weighted = Tiled.join_sink(self, m, row_sum, acc * row_sum)
    return new, total, weighted / total.masked_fill(total == 0, 1.0)


def _exp2(self: Tiled, x: Tensor) -> Tensor:
    return torch.exp2(x * LOG2_E)


def _plain(scale_on: str) -> Callable[..., Tensor]:
    """Plain attention with the scale on "q", "k", "both" or the "scores", for the DENSE contract."""

    def attend(
        q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: tuple[Score, ...], scale: float
    ) -> Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        if scale_on == "q":
            s = (q * scale) @ k.transpose(-1, -2)  # [B, H, Q, K]
        elif scale_on == "k":
            s = q @ (k * scale).transpose(-1, -2)
        elif scale_on == "both":
            # Each takes the root of the scale, and q its sign.
            root = math.sqrt(abs(scale))
            s = (q * math.copysign(root, scale)) @ (k * root).transpose(-1, -2)
        else:
            s = (q @ k.transpose(-1, -2)) * scale
        return weighted_values(s, v, mask, scores)

    return attend


def added_to_scores(s: Tensor, scores: tuple[Score, ...]) -> Tensor:
    """Softcap, then every bias, in the dtype of s [B, H, Q, K]."""
    b, h, q_len, k_len = s.shape
    for score in scores:
        if isinstance(score, Softcap):
            s = score.cap * torch.tanh(s / score.cap)
        elif isinstance(score, Bias) and score.tensor is not None:
            s = s + score.tensor.to(s.dtype)
        elif isinstance(score, RelativeBias) and score.tensor is not None:
            from attnbench.problem.masks import Extent

            index = score.index(Extent(b, h, q_len, k_len)).to(s.device)
            s = s + score.tensor.to(s.dtype)[:, index]
        elif isinstance(score, ALiBi):
            p = torch.arange(q_len, device=s.device)[:, None] + k_len - q_len
            distance = (p - torch.arange(k_len, device=s.device)).abs()
            slopes = torch.tensor(score.slopes_for(h), device=s.device)[:, None, None]
            s = s + (-slopes * distance).to(s.dtype)
    return s


def weighted_values(
    s: Tensor,
    v: Tensor,
    mask: Mask,
    scores: tuple[Score, ...],
    rounded: Callable[[Tensor], Tensor] = lambda p: p,
) -> Tensor:
    """Softmax of the masked scores over keys (and the sink), times V: [B, H, Q, Dv]."""
    s = added_to_scores(s, scores)
    b, h, q_len, k_len = s.shape
    s = s.masked_fill(~mask.materialize(b, h, q_len, k_len, device=s.device), -torch.inf)
    sink = next((score.tensor for score in scores if isinstance(score, Sink)), None)
    # The maximum only shifts the exponent; with a gradient its residue would land on one key.
    top = s.detach().amax(-1, keepdim=True)
    if sink is not None:
        top = torch.maximum(top, sink.detach().to(s.dtype)[None, :, None, None])
    top = top.masked_fill(top == -torch.inf, 0.0)
    p = torch.exp(s - top)
    total = p.sum(-1, keepdim=True)
    if sink is not None:
        total = total + torch.exp(sink.to(s.dtype)[None, :, None, None] - top)
    return rounded(p / total.masked_fill(total == 0, 1.0)) @ v


def _in_float32(
    q: Tensor, k: Tensor, v: Tensor, *, mask: Mask, scores: tuple[Score, ...], scale: float
) -> Tensor:
    """FLASH without tiles: all in float32, P rounded by a straight-through step (`.to` alone would round dP)."""
    group = q.shape[1] // k.shape[1]
    wide = [x.float() for x in (q, k, v)]  # each once: two casts would add up two rounded gradients
    k32, v32 = (x.repeat_interleave(group, dim=1) for x in wide[1:])
    s = (wide[0] @ k32.transpose(-1, -2)) * scale
    out = weighted_values(s, v32, mask, scores, lambda p: p + (p.to(q.dtype).float() - p).detach())
    return out.to(q.dtype)


def plain_attention(scale_on: str) -> FunctionBackend:
    """Plain attention under the DENSE contract, with the scale on "q", "k", "both" or the "scores"."""
    can = Capabilities(contract="dense", source="arXiv 1706.03762")
    return FunctionBackend(_plain(scale_on), f"plain, scale on {scale_on}", can)


def _divides_twice(case: Case) -> bool:
    # 1 / sum^2 of fp16 is subnormal past 128 keys: at 1,023 it has four bits, and near-constant values show it.
    return case.needs_backward and case.dtype == "fp16" and case.k_len > 128


def _dense(scale_on: str) -> Right:
    return Right(
        f"plain, scale on {scale_on}",
        lambda: plain_attention(scale_on),
        _divides_twice,
        "autograd's gradient of exp / sum divides by the sum twice, which underflows in fp16 and loses delta: dq is "
        "off by thousands of times its noise at 20,000 keys; not judged in fp16 beyond 128 keys (torch.softmax is)",
    )


def _tiled(name: str, tiling: Tiling = Tiling(), **steps: Callable[..., object]) -> Right:
    kind = variant(name.replace(" ", "_"), **steps) if steps else Tiled
    return Right(name, lambda: TiledBackend(name, kind, tiling))


def _sums_in_halves(case: Case) -> bool:
    return case.needs_backward and case.dtype != "fp32" and max(case.q_len, case.k_len) > 512


RIGHT: tuple[Right, ...] = (
    _tiled("tiled 128x64"),
    _tiled("tiled 32x128", Tiling(32, 128)),
    _tiled("tiled 64x16", Tiling(64, 16)),
    _tiled("one tile", Tiling(1 << 20, 1 << 20)),
    _tiled("tiled, last tile first", Tiling(64, 64, reverse=True)),
    _tiled("tiled 256x32, last tile first", Tiling(256, 32, reverse=True)),
    _tiled("2 splits", Tiling(128, 64, splits=2)),
    _tiled("7 splits of small tiles", Tiling(64, 32, splits=7)),
    _tiled("exp2", exp=_exp2),
    _tiled("lazy rescaling", update=_lazy_update),
    _tiled(
        "accumulator normalised at each tile",
        update=_normalised_update,
        finish=_already_normalised,
        join_sink=_sink_normalised,
    ),
    Right("plain in float32", lambda: FunctionBackend(_in_float32, "plain in float32")),
    _dense("scores"),
    _dense("q"),
    _dense("k"),
    _dense("both"),
    Right("naive", lambda: resolve("naive")),
    Right("sdpa_math", lambda: resolve("sdpa_math")),
    Right(
        "sdpa_flash",
        lambda: resolve("sdpa_flash"),
        _sums_in_halves,
        "torch 2.13's CPU kernel adds up dq over blocks of 512 keys, and dk and dv over blocks of 32 to 256 "
        "queries, in the dtype: not judged in bf16 and fp16 beyond 512 tokens",
    ),
)
