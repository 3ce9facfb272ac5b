"""A right tiled attention, readable, in steps small enough to plant one fault in each.

FlashAttention-2 (arXiv 2307.08691) in plain torch under the FLASH contract: scores and statistics in float32,
P and dS rounded to the dtype before their products, outputs rounded once. Every method is one step of the
algorithm; a mutant overrides one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.interface import Backend, Capabilities, Gradients, Output, Prepared
from attnbench.errors import AttnbenchError
from attnbench.problem import Case, Inputs
from attnbench.problem.inputs import torch_dtype
from attnbench.selftest.mutants.score_tiles import ScoreTiles

LOG2_E = math.log2(math.e)
Statistics = tuple[
    Tensor, Tensor, Tensor
]  # maximum [B, H, q, 1], row sum [B, H, q, 1], accumulator [B, H, q, Dv]


@dataclass(frozen=True)
class Tiling:
    """Tile sizes in tokens, the number of key splits that are merged, and the order of the tiles."""

    block_q: int = 128
    block_k: int = 64
    splits: int = 1
    reverse: bool = False


class Tiled(ScoreTiles, Prepared):
    """One case, computed tile by tile; tiles of keys are padded to whole blocks, as on a GPU."""

    def __init__(self, case: Case, inputs: Inputs, tiling: Tiling = Tiling()) -> None:
        super().__init__()
        self.case, self.inputs, self.tiling = case, inputs, tiling
        self.extent = case.extent
        self.dtype = torch_dtype(case.dtype)
        self.device = inputs.device
        self.saved: tuple[Tensor, Tensor] | None = None
        self.predicates = {}
        self.block_k = min(tiling.block_k, -(-case.k_len // 8) * 8)
        self.kernel = type(self).__name__

    def load(self) -> tuple[Tensor, Tensor, Tensor]:
        """q [B, H, Q, D], k [B, H, K, D], v [B, H, K, Dv] in float32, key heads repeated over their group."""
        heads = self.kv_head()
        k, v = (self.read(name).float() for name in ("k", "v"))
        if heads is not None:
            k, v = k[:, heads], v[:, heads]
        return self.read("q").float(), k, v

    def read(self, name: str) -> Tensor:
        """One input, [B, heads, S, dim], as given."""
        return self.inputs.tensors[name]

    def kv_head(self) -> Tensor | None:
        """The key head of each query head, int64 [H]; None if it is the same head."""
        if self.case.group == 1:
            return None
        return torch.arange(self.case.q_heads, device=self.device) // self.case.group

    def row_tiles(self) -> Iterator[slice]:
        starts = range(0, self.case.q_len, self.tiling.block_q)
        for start in reversed(starts) if self.tiling.reverse else starts:
            yield slice(start, min(start + self.tiling.block_q, self.case.q_len))

    def col_tiles(self, rows: slice) -> list[slice]:
        """Tiles of keys in the order of visits; the last one may reach past k_len."""
        starts = range(0, self.case.k_len, self.block_k)
        ordered = reversed(starts) if self.tiling.reverse else starts
        return [slice(start, start + self.block_k) for start in ordered]

    def split(self, tiles: list[slice]) -> list[list[slice]]:
        """The tiles of each split; more splits than tiles leave some empty."""
        size = -(-len(tiles) // self.tiling.splits)
        return [tiles[size * n : size * (n + 1)] for n in range(self.tiling.splits)]

    def padded(self, x: Tensor, cols: slice) -> Tensor:
        """Rows `cols` of x [B, H, K, dim], zeros past its end: [B, H, block_k, dim]."""
        tile = x[:, :, cols]
        missing = (cols.stop - cols.start) - tile.shape[2]
        return torch.nn.functional.pad(tile, (0, 0, 0, missing), value=self.padding()) if missing else tile

    def padding(self) -> float:
        """The value in a tile past the last key."""
        return 0.0

    def forward(self) -> Output:
        q, k, v = self.load()
        out, lse = self.buffers()
        for rows in self.row_tiles():
            splits = [self.attend(q, k, v, rows, tiles) for tiles in self.split(self.col_tiles(rows))]
            statistics = splits[0] if len(splits) == 1 else self.merge([self.finish(*s) for s in splits])
            out_tile, lse_tile = self.finish(*self.join_sink(*statistics))
            out[:, :, rows] = out_tile.to(self.dtype)
            lse[:, :, rows] = lse_tile
        self.saved = (out, lse)
        return self.store(out, lse)

    def buffers(self) -> tuple[Tensor, Tensor]:
        """out [B, H, Q, Dv] in the dtype and lse [B, H, Q] in float32, not yet written."""
        c = self.case
        out = torch.empty(c.batch, c.q_heads, c.q_len, c.v_dim, dtype=self.dtype, device=self.device)
        return out, torch.empty(c.batch, c.q_heads, c.q_len, device=self.device)

    def store(self, out: Tensor, lse: Tensor) -> Output:
        return Output(out, lse)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, rows: slice, tiles: list[slice]) -> Statistics:
        """Online softmax of the query rows over tiles of keys (algorithm 1, lines 6 to 11)."""
        m, row_sum, acc = self.start(q[:, :, rows])
        for cols in tiles:
            m, row_sum, acc = self.update(
                m, row_sum, acc, self.scores(q, k, rows, cols), self.padded(v, cols)
            )
        return m, row_sum, acc

    def start(self, q: Tensor) -> Statistics:
        shape = q.shape[:3]
        m = q.new_full((*shape, 1), -torch.inf)
        return m, q.new_zeros((*shape, 1)), q.new_zeros((*shape, self.case.v_dim))

    def raw_scores(self, q: Tensor, k: Tensor, rows: slice, cols: slice) -> Tensor:
        """The scaled product, float32 [B, H, q, block_k]."""
        return self.product(q[:, :, rows], self.padded(k, cols)) * self.scale()

    def scores(self, q: Tensor, k: Tensor, rows: slice, cols: slice) -> Tensor:
        """Scale, softcap, biases, mask, in that order: float32 [B, H, q, block_k]."""
        return self.masked(
            self.biased(self.capped(self.raw_scores(q, k, rows, cols)), rows, cols), rows, cols
        )

    def product(self, q: Tensor, k: Tensor) -> Tensor:
        return q @ k.transpose(-1, -2)  # [B, H, q, block_k]

    def scale(self) -> float:
        return self.case.softmax_scale

    def update(self, m: Tensor, row_sum: Tensor, acc: Tensor, s: Tensor, v: Tensor) -> Statistics:
        """Add one tile of keys to the statistics."""
        new = self.maximum(m, s)
        # A row that has seen no key yet has maximum -inf; shift by 0 there so that exp(-inf - 0) is 0.
        shift = new.masked_fill(new == -torch.inf, 0.0)
        alpha = self.exp(m - shift)
        p = self.exp(s - shift)
        return new, self.add_sum(row_sum, alpha, p), self.add_values(acc, alpha, p, v)

    def maximum(self, m: Tensor, s: Tensor) -> Tensor:
        return torch.maximum(m, s.amax(-1, keepdim=True))

    def exp(self, x: Tensor) -> Tensor:
        return torch.exp(x)

    def add_sum(self, row_sum: Tensor, alpha: Tensor, p: Tensor) -> Tensor:
        return row_sum * alpha + p.sum(-1, keepdim=True)

    def add_values(self, acc: Tensor, alpha: Tensor, p: Tensor, v: Tensor) -> Tensor:
        return acc * alpha + self.rounded(p) @ v

    def rounded(self, x: Tensor) -> Tensor:
        """x rounded to the dtype, like the operands of a matrix product."""
        return x.to(self.dtype).float()

    def finish(self, m: Tensor, row_sum: Tensor, acc: Tensor) -> tuple[Tensor, Tensor]:
        """out [B, H, q, Dv] float32 and lse [B, H, q]; a row without keys has out 0 and lse -inf."""
        empty = row_sum == 0
        out = (acc / row_sum.masked_fill(empty, 1.0)).masked_fill(empty, 0.0)
        return out, (m + torch.log(row_sum)).squeeze(-1)

    def merge(self, parts: list[tuple[Tensor, Tensor]]) -> Statistics:
        """Normalised outputs of splits, weighted by their LSE (flash decoding)."""
        lse = torch.stack([part[1] for part in parts])  # [splits, B, H, q]
        m = lse.amax(0)
        weights = torch.exp(lse - m.masked_fill(m == -torch.inf, 0.0))  # [splits, B, H, q]
        acc = sum(w[..., None] * part[0] for w, part in zip(weights, parts, strict=True))
        return m[..., None], weights.sum(0)[..., None], torch.as_tensor(acc)

    def join_sink(self, m: Tensor, row_sum: Tensor, acc: Tensor) -> Statistics:
        """The sink enters the maximum and the row sum; it has no value."""
        sink = self.sink()
        if sink is None:
            return m, row_sum, acc
        new = torch.maximum(m, sink)
        alpha = torch.exp(m - new)
        return new, row_sum * alpha + torch.exp(sink - new), acc * alpha

    def backward(self, dout: Tensor) -> Gradients:
        if self.saved is None:
            raise AttnbenchError("backward needs a forward before it")
        q, k, v = self.load()
        out, lse = self.saved
        do = self.read_dout(dout)
        delta = self.delta(out, do)
        dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
        grads: dict[str, Tensor] = self.score_gradient_buffers()
        for rows in self.row_tiles():
            for cols in self.col_tiles(rows):
                raw = self.raw_scores(q, k, rows, cols)
                s = self.masked_backward(self.biased(self.capped(raw), rows, cols), rows, cols)
                p = self.probabilities(s, self.lse_tile(lse, rows))
                dp = self.dp(do[:, :, rows], self.padded(v, cols))
                ds = self.ds(p, dp, self.delta_tile(delta, rows))
                self.add_score_gradients(grads, ds, rows, cols)
                ds = self.rounded(self.through_cap(ds, raw))
                keys = slice(cols.start, min(cols.stop, self.case.k_len))
                inside = keys.stop - keys.start
                self.add_dq(dq, rows, ds @ self.padded(k, cols))
                self.add_dk(dk, rows, keys, (ds.transpose(-1, -2) @ q[:, :, rows])[:, :, :inside])
                weights = self.rounded(self.dv_weights(p, s))
                self.add_dv(dv, rows, keys, (weights.transpose(-1, -2) @ do[:, :, rows])[:, :, :inside])
        self.add_dsink(grads, lse, delta)
        return self.gradients(dq * self.scale_dq(), dk * self.scale_dk(), dv, grads)

    def read_dout(self, dout: Tensor) -> Tensor:
        return dout.float()  # [B, H, Q, Dv]

    def delta(self, out: Tensor, do: Tensor) -> Tensor:
        """rowsum(dO * O) in float32, [B, H, Q, 1] (equation 4 of the FlashAttention-2 paper)."""
        return (do * out.float()).sum(-1, keepdim=True)

    def lse_tile(self, lse: Tensor, rows: slice) -> Tensor:
        return lse[:, :, rows, None]

    def delta_tile(self, delta: Tensor, rows: slice) -> Tensor:
        return delta[:, :, rows]

    def masked_backward(self, s: Tensor, rows: slice, cols: slice) -> Tensor:
        return self.masked(s, rows, cols)

    def probabilities(self, s: Tensor, lse: Tensor) -> Tensor:
        """P recomputed from the saved LSE; 0 in a row without keys."""
        return self.exp(s - lse.masked_fill(lse == -torch.inf, 0.0))

    def dp(self, do: Tensor, v: Tensor) -> Tensor:
        return do @ v.transpose(-1, -2)

    def dv_weights(self, p: Tensor, s: Tensor) -> Tensor:
        return p

    def ds(self, p: Tensor, dp: Tensor, delta: Tensor) -> Tensor:
        return p * (dp - delta)

    def scale_dq(self) -> float:
        return self.scale()

    def scale_dk(self) -> float:
        return self.scale()

    def add_dq(self, dq: Tensor, rows: slice, part: Tensor) -> None:
        dq[:, :, rows] += part

    def add_dk(self, dk: Tensor, rows: slice, keys: slice, part: Tensor) -> None:
        dk[:, :, keys] += part

    def add_dv(self, dv: Tensor, rows: slice, keys: slice, part: Tensor) -> None:
        dv[:, :, keys] += part

    def reduced(self, x: Tensor) -> Tensor:
        """Sum of the gradients of a group's query heads: [B, H, K, dim] -> [B, Hkv, K, dim]."""
        heads = self.kv_head()
        if heads is None:
            return x
        return x.new_zeros(x.shape[0], self.case.kv_heads, *x.shape[2:]).index_add_(1, heads, x)

    def gradients(self, dq: Tensor, dk: Tensor, dv: Tensor, grads: dict[str, Tensor]) -> Gradients:
        named = {name: grad.to(self.dtype) for name, grad in grads.items()}
        return Gradients(
            dq.to(self.dtype), self.reduced(dk).to(self.dtype), self.reduced(dv).to(self.dtype), named
        )


class TiledBackend(Backend):
    """A `Tiled`, or a mutant of it, as a backend."""

    def __init__(
        self,
        name: str,
        kind: type[Tiled] = Tiled,
        tiling: Tiling = Tiling(),
        capabilities: Capabilities | None = None,
    ) -> None:
        self.name = name
        self.kind = kind
        self.tiling = tiling
        self.capabilities = capabilities or Capabilities(source="arXiv 2307.08691")

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return self.kind(case, inputs, self.tiling)


def variant(name: str, **steps: Any) -> type[Tiled]:
    """A Tiled with some steps replaced; each is a function whose first argument is the Tiled."""
    unknown = sorted(step for step in steps if not hasattr(Tiled, step))
    if unknown:
        raise AttnbenchError(f"{name}: a tiled attention has no step {unknown[0]!r}")
    return type(name, (Tiled,), dict(steps))
