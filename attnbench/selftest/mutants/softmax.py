"""Mutants of the scale, the softmax and its precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.backend.interface import Output
from attnbench.selftest.mutants.catalogue import mutant
from attnbench.selftest.mutants.tiled import LOG2_E, Statistics, Tiled

mutant("no scale", "scale", "left out", scale=lambda self: 1.0)
mutant("double scale", "scale", "on q and again on the scores", scale=lambda self: self.case.softmax_scale**2)
mutant("scale 1/d", "scale", "without the square root", scale=lambda self: 1.0 / self.case.head_dim)
mutant(
    "scale of the padded head dim",
    "scale",
    "head dims are padded to 64 lanes before 1 / sqrt(d)",
    scale=lambda self: (
        (-(-self.case.head_dim // 64) * 64) ** -0.5 if self.case.scale is None else self.case.scale
    ),
)
mutant("caller's scale ignored", "scale", "pytorch#174049", scale=lambda self: self.case.head_dim**-0.5)


_scale_of_shape: dict[tuple[int, ...], float] = {}


def _cached_scale(self: Tiled) -> float:
    return _scale_of_shape.setdefault(tuple(self.inputs.q.shape), self.case.softmax_scale)


mutant("scale cached by shape", "protocol", "flashinfer#4014", scale=_cached_scale)


def _no_maximum(self: Tiled, m: Tensor, s: Tensor) -> Tensor:
    return torch.zeros_like(m)


mutant("no maximum", "online softmax", "exp overflows", maximum=_no_maximum)


def _start_at_zero(self: Tiled, q: Tensor) -> Statistics:
    m, row_sum, acc = Tiled.start(self, q)
    return torch.zeros_like(m), row_sum, acc


mutant(
    "maximum started at 0",
    "online softmax",
    "rows whose scores are far below 0 underflow",
    start=_start_at_zero,
)
mutant(
    "maximum of the first tile only",
    "online softmax",
    "never updated",
    maximum=lambda self, m, s: torch.where(m == -torch.inf, s.amax(-1, keepdim=True), m),
)
mutant(
    "accumulator not rescaled",
    "online softmax",
    "when the maximum rises",
    add_values=lambda self, acc, alpha, p, v: acc + self.rounded(p) @ v,
)
mutant(
    "row sum not rescaled",
    "online softmax",
    "when the maximum rises",
    add_sum=lambda self, row_sum, alpha, p: row_sum + p.sum(-1, keepdim=True),
)


def _flipped(alpha: Tensor) -> Tensor:
    return torch.where(alpha == 0, alpha, 1 / alpha)


mutant(
    "rescale sign flipped",
    "online softmax",
    "exp(new - old)",
    add_sum=lambda self, row_sum, alpha, p: Tiled.add_sum(self, row_sum, _flipped(alpha), p),
    add_values=lambda self, acc, alpha, p, v: Tiled.add_values(self, acc, _flipped(alpha), p, v),
)
mutant(
    "log2(e) truncated",
    "low precision",
    "the constant is kept in fp16: 1.4424 instead of 1.442695",
    exp=lambda self, x: torch.exp2(x * float(torch.tensor(LOG2_E, dtype=torch.float16))),
)


def _kept_in(dtype: torch.dtype, step: str) -> Callable[..., Tensor]:
    def low(self: Tiled, *args: Tensor) -> Tensor:
        return getattr(Tiled, step)(self, *args).to(dtype).float()

    return low


FINER_THAN_BF16 = frozenset({"fp16", "fp32"})
mutant(
    "accumulator in bf16",
    "low precision",
    "rounded after each tile",
    add_values=_kept_in(torch.bfloat16, "add_values"),
)
mutant(
    "accumulator in fp16",
    "low precision",
    "rounded after each tile",
    dtypes=FINER_THAN_BF16,
    add_values=_kept_in(torch.float16, "add_values"),
)
mutant("row sum in bf16", "low precision", "tract#2586", add_sum=_kept_in(torch.bfloat16, "add_sum"))
mutant("row sum in fp16", "low precision", "tract#2586", add_sum=_kept_in(torch.float16, "add_sum"))
mutant(
    "QK in fp16",
    "low precision",
    "the product overflows or is rounded",
    product=_kept_in(torch.float16, "product"),
)


def _tf32(x: Tensor) -> Tensor:
    """Rounded to the ten bits of mantissa of TF32."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


mutant(
    "TF32 in fp32",
    "low precision",
    "triton#1671",
    dtypes=frozenset({"fp32"}),
    product=lambda self, q, k: Tiled.product(self, _tf32(q), _tf32(k)),
)
mutant(
    "P in 8 bits",
    "low precision",
    "e4m3 without a declaration",
    add_values=lambda self, acc, alpha, p, v: acc * alpha + p.to(torch.float8_e4m3fn).float() @ v,
)
mutant(
    "P below 1e-3 dropped",
    "low precision",
    "a threshold against noise, below which many keys together still count",
    add_values=lambda self, acc, alpha, p, v: Tiled.add_values(self, acc, alpha, p * (p >= 1e-3), v),
)
mutant(
    "only the last 128 keys",
    "missing keys",
    "a ring buffer that is too short",
    col_tiles=lambda self, rows: [c for c in Tiled.col_tiles(self, rows) if c.stop > self.case.k_len - 128],
)


def _over_queries(
    self: Tiled, q: Tensor, k: Tensor, v: Tensor, rows: slice, tiles: list[slice]
) -> Statistics:
    s = self.scores(q, k, rows, slice(0, self.case.k_len))
    p = torch.softmax(s, dim=2).nan_to_num(0.0)
    one = torch.ones_like(p[..., :1])
    return torch.zeros_like(one), one, self.rounded(p) @ v


mutant("softmax over the wrong axis", "not attention", "dim=-2", attend=_over_queries)
mutant(
    "LSE in base 2",
    "lse",
    "sglang#40903",
    shows_without_lse=False,
    store=lambda self, out, lse: Output(out, lse * LOG2_E),
)
mutant(
    "LSE without the maximum",
    "lse",
    "log of the row sum alone",
    finish=lambda self, m, row_sum, acc: (
        Tiled.finish(self, m, row_sum, acc)[0],
        torch.log(row_sum).squeeze(-1),
    ),
)
mutant(
    "LSE in bf16",
    "lse",
    "saved in the dtype of the inputs",
    finish=lambda self, m, row_sum, acc: (
        Tiled.finish(self, m, row_sum, acc)[0],
        Tiled.finish(self, m, row_sum, acc)[1].bfloat16().float(),
    ),
)
