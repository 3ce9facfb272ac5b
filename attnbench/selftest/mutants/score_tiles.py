"""The steps of a tiled attention on one tile of scores: mask, softcap, biases, and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.problem import ALiBi, Case, Inputs, RelativeBias
from attnbench.problem.masks import Extent, Mask


class ScoreTiles:
    """The steps of `Tiled` that read the mask and the score changes, for query `rows` and key `cols` of a tile."""

    case: Case
    inputs: Inputs
    extent: Extent
    device: torch.device
    predicates: dict[int, Any]  # of masks, by their id

    def score(self, kind: str) -> Any:
        """The bound score change of a kind, or None."""
        return next((score for score in self.inputs.scores if score.kind == kind), None)

    def indices(self, rows: slice, cols: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """b [B|1, 1, 1, 1], h [1, H|1, 1, 1], q [1, 1, q, 1], k [1, 1, 1, block_k]; k may lie past the last key."""
        case, device = self.case, self.device
        b = torch.arange(case.batch if case.mask.varies_over_batch else 1, device=device)
        h = torch.arange(case.q_heads if case.mask.varies_over_heads else 1, device=device)
        q = torch.arange(rows.start, rows.stop, device=device)
        k = torch.arange(cols.start, cols.stop, device=device)
        return b[:, None, None, None], h[None, :, None, None], q[None, None, :, None], k[None, None, None, :]

    def allowed(self, rows: slice, cols: slice) -> Tensor:
        """True if the query may attend the key: bool [B|1, H|1, q|1, block_k]."""
        b, h, q, k = self.indices(rows, cols)
        permitted = self.permits(self.case.mask, b, h, q, k.clamp_max(self.case.k_len - 1))
        return permitted & self.in_bounds(k)

    def in_bounds(self, k: Tensor) -> Tensor:
        return k < self.case.k_len

    def permits(self, mask: Mask, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return self.predicate_of(mask)(b, h, q, k)

    def predicate_of(self, mask: Mask) -> Any:
        if id(mask) not in self.predicates:
            self.predicates[id(mask)] = mask.predicate(self.extent, self.device)
        return self.predicates[id(mask)]

    def masked(self, s: Tensor, rows: slice, cols: slice) -> Tensor:
        return torch.where(self.allowed(rows, cols), s, -torch.inf)

    def cap(self) -> float | None:
        score = self.score("softcap")
        return None if score is None else score.cap

    def capped(self, s: Tensor) -> Tensor:
        cap = self.cap()
        return s if cap is None else cap * torch.tanh(s / cap)

    def through_cap(self, ds: Tensor, raw: Tensor) -> Tensor:
        """The derivative of the softcap is 1 - tanh^2."""
        cap = self.cap()
        return ds if cap is None else ds * (1 - torch.tanh(raw / cap) ** 2)

    def biased(self, s: Tensor, rows: slice, cols: slice) -> Tensor:
        for tile in (self.bias_tile(rows, cols), self.relative_tile(rows, cols), self.alibi_tile(rows, cols)):
            if tile is not None:
                s = s + tile
        return s

    def keys_of(self, cols: slice) -> Tensor:
        """The keys of a tile, int64 [block_k]; past the last key the last one again (it is masked)."""
        return torch.arange(cols.start, cols.stop, device=self.device).clamp_max(self.case.k_len - 1)

    def bias_tile(self, rows: slice, cols: slice) -> Tensor | None:
        """The bias, float32 [B|1, H|1, q|1, block_k|1]."""
        score = self.score("bias")
        if score is None:
            return None
        tile = score.tensor.float()
        tile = tile if tile.shape[2] == 1 else tile[:, :, rows]
        return tile if tile.shape[3] == 1 else tile[:, :, :, self.keys_of(cols)]

    def relative_index(self, rows: slice, cols: slice) -> Tensor:
        """The table entry of each pair, int64 [q, block_k]."""
        score: RelativeBias = self.score("relative")
        if not hasattr(self, "_relative_index"):
            self._relative_index = score.index(self.extent).to(self.device)
        return self._relative_index[rows][:, self.keys_of(cols)]

    def relative_tile(self, rows: slice, cols: slice) -> Tensor | None:
        score = self.score("relative")
        return None if score is None else score.tensor.float()[:, self.relative_index(rows, cols)]

    def slopes(self, score: ALiBi) -> tuple[float, ...]:
        return score.slopes_for(self.case.q_heads)

    def offset(self) -> int:
        """p = i + offset, which aligns the last query with the last key."""
        return self.case.k_len - self.case.q_len

    def alibi_tile(self, rows: slice, cols: slice) -> Tensor | None:
        score = self.score("alibi")
        if score is None:
            return None
        p = torch.arange(rows.start, rows.stop, device=self.device)[:, None] + self.offset()
        slopes = torch.tensor(self.slopes(score), device=self.device)[:, None, None]  # [H, 1, 1]
        return -slopes * (p - self.keys_of(cols)).abs()  # [H, q, block_k]

    def score_gradient_buffers(self) -> dict[str, Tensor]:
        """Zeros, float32, for every score change that has a gradient."""
        return {
            s.gradient: torch.zeros_like(s.tensor, dtype=torch.float32)
            for s in self.inputs.scores
            if s.gradient is not None and s.tensor is not None
        }

    def add_score_gradients(self, grads: dict[str, Tensor], ds: Tensor, rows: slice, cols: slice) -> None:
        """The part of one tile of dS [B, H, q, block_k] in the gradients of bias and table."""
        keys = slice(cols.start, min(cols.stop, self.case.k_len))
        ds = ds[..., : keys.stop - keys.start]
        if "dbias" in grads:
            self.add_dbias(grads["dbias"], ds, rows, keys)
        if "dtable" in grads:
            index = self.relative_index(rows, cols)[:, : ds.shape[-1]].flatten()
            grads["dtable"].index_add_(1, index, ds.sum(0).flatten(1))

    def add_dbias(self, dbias: Tensor, ds: Tensor, rows: slice, keys: slice) -> None:
        broadcast = [dim for dim in range(4) if dbias.shape[dim] == 1 and ds.shape[dim] != 1]
        part = ds.sum(broadcast, keepdim=True) if broadcast else ds
        target = dbias if dbias.shape[2] == 1 else dbias[:, :, rows]
        target = target if dbias.shape[3] == 1 else target[:, :, :, keys]
        target += part

    def sink(self) -> Tensor | None:
        """The sink logits, float32 [H, 1, 1], or None."""
        score = self.score("sink")
        return None if score is None else score.tensor.float()[:, None, None]

    def add_dsink(self, grads: dict[str, Tensor], lse: Tensor, delta: Tensor) -> None:
        """The sink has no value, so its dP is 0: dsink[h] = -sum over rows of P_sink * delta."""
        sink = self.sink()
        if sink is not None:
            grads["dsink"] += -(torch.exp(sink - lse[..., None]) * delta).sum((0, 2, 3))
