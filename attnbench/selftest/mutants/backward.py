"""Mutants whose output is right and whose gradients are wrong."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor

from attnbench.backend.interface import Gradients
from attnbench.problem import SlidingWindow
from attnbench.selftest.mutants.catalogue import by_leaf, in_backward, mutant
from attnbench.selftest.mutants.layout import ignoring_strides
from attnbench.selftest.mutants.masks import NARROWER, WIDER
from attnbench.selftest.mutants.tiled import Tiled, Tiling

SMALL = Tiling(block_q=32, block_k=32)


def _wrong_gradients(name: str, origin: str, *, cause: str = "gradients only", **rest: Any) -> None:
    mutant(name, cause, origin, gradients_only=True, **rest)


_wrong_gradients("dq without scale", "left out of one product", scale_dq=lambda self: 1.0)
_wrong_gradients("dk without scale", "left out of one product", scale_dk=lambda self: 1.0)
_wrong_gradients(
    "delta omitted", "dS = P * dP", delta=lambda self, out, do: torch.zeros_like(out[..., :1]).float()
)
_wrong_gradients(
    "delta in low precision",
    "arXiv 2510.04212",
    cause="low precision",
    delta=lambda self, out, do: Tiled.delta(self, out, do).bfloat16().float(),
)
_wrong_gradients(
    "P not masked in the backward",
    "flash-attention#1947",
    shows="masked",
    masked_backward=in_backward(lambda self, mask, b, h, q, k: (q >= 0) & (k >= 0)),
)


def _tail_scored_0(self: Tiled, s: Tensor, rows: slice, cols: slice) -> Tensor:
    inside = self.in_bounds(self.indices(rows, cols)[3])
    return torch.where(inside, self.masked(s, rows, cols), 0.0)


_wrong_gradients(
    "tail scored 0 in the backward",
    "pytorch#196678: exp(0 - LSE) overflows if the LSE is negative, and inf * 0 is NaN",
    masked_backward=_tail_scored_0,
)
_wrong_gradients(
    "window one too long in the backward",
    "forward and backward disagree",
    shows="window",
    masked_backward=in_backward(by_leaf(SlidingWindow, WIDER)),
)
_wrong_gradients(
    "window one too short in the backward",
    "forward and backward disagree",
    shows="window",
    masked_backward=in_backward(by_leaf(SlidingWindow, NARROWER)),
)
_wrong_gradients(
    "softcap derivative missing",
    "flash-attention#1033",
    shows="softcap",
    through_cap=lambda self, ds, raw: ds,
)
_wrong_gradients(
    "dv from unnormalised P",
    "exp(s - max) without the row sum",
    dv_weights=lambda self, p, s: torch.exp(s - s.amax(-1, keepdim=True).clamp_min(-1e30)),
)
_wrong_gradients(
    "LSE of the first block reused",
    "a pointer that does not advance",
    tiling=SMALL,
    lse_tile=lambda self, lse, rows: lse[:, :, : rows.stop - rows.start, None],
)
_wrong_gradients(
    "delta of the first block reused",
    "a pointer that does not advance",
    tiling=SMALL,
    delta_tile=lambda self, delta, rows: delta[:, :, : rows.stop - rows.start],
)


def _without_second_tile(self: Tiled, dk: Tensor, rows: slice, keys: slice, part: Tensor) -> None:
    if rows.start != self.tiling.block_q:
        Tiled.add_dk(self, dk, rows, keys, part)


_wrong_gradients(
    "dk loses a query tile", "the loop starts too late", tiling=SMALL, add_dk=_without_second_tile
)


def _overwritten(self: Tiled, dv: Tensor, rows: slice, keys: slice, part: Tensor) -> None:
    dv[:, :, keys] = part


_wrong_gradients("dv overwritten", "= for +=", tiling=SMALL, add_dv=_overwritten)


def _last_of_group(self: Tiled, x: Tensor) -> Tensor:
    return x[:, self.case.group - 1 :: self.case.group]


_wrong_gradients(
    "GQA dk of the last head",
    "each head of a group overwrites it",
    cause="gqa mapping",
    reduced=_last_of_group,
)
_wrong_gradients(
    "GQA dk averaged",
    "mean over the group instead of the sum",
    cause="gqa mapping",
    reduced=lambda self, x: Tiled.reduced(self, x) / self.case.group,
)


def _tail_left(self: Tiled, dk: Tensor, rows: slice, keys: slice, part: Tensor) -> None:
    if keys.stop % self.block_k == 0 or keys.start == 0:
        Tiled.add_dk(self, dk, rows, keys, part)


_wrong_gradients(
    "dk tail unwritten",
    "the last tile of keys is not stored",
    cause="tail tile",
    tiling=SMALL,
    add_dk=_tail_left,
)
_wrong_gradients(
    "NaN gradients of empty rows",
    "exp(-inf - -inf)",
    cause="empty rows",
    shows="masked",
    probabilities=lambda self, s, lse: torch.exp(s - lse),
)


def _first_of_broadcast(self: Tiled, dbias: Tensor, ds: Tensor, rows: slice, keys: slice) -> None:
    for dim in (0, 1):
        if dbias.shape[dim] == 1:
            ds = ds[:1] if dim == 0 else ds[:, :1]
    Tiled.add_dbias(self, dbias, ds, rows, keys)


_wrong_gradients(
    "dbias not reduced",
    "the gradient of one batch row or head instead of the sum over those that share the bias",
    cause="score change",
    shows="bias",
    add_dbias=_first_of_broadcast,
)
_wrong_gradients(
    "gradient of the bias forgotten",
    "pytorch#148476: none if only the bias requires a gradient",
    cause="score change",
    shows="bias",
    add_dbias=lambda self, dbias, ds, rows, keys: None,
)
_wrong_gradients(
    "dbias of the raw score",
    "dS after the scale",
    cause="score change",
    shows="bias",
    add_dbias=lambda self, dbias, ds, rows, keys: Tiled.add_dbias(self, dbias, ds * self.scale(), rows, keys),
)


def _last_write_wins(self: Tiled, grads: dict[str, Tensor], ds: Tensor, rows: slice, cols: slice) -> None:
    if "dtable" not in grads:
        return Tiled.add_score_gradients(self, grads, ds, rows, cols)
    index = self.relative_index(rows, cols)[:, : ds.shape[-1]].flatten()
    inside = ds[..., : index.numel() // (rows.stop - rows.start)]
    grads["dtable"][:, index] += inside.sum(0).flatten(1)
    return None


_wrong_gradients(
    "table gradient without accumulation",
    "several pairs share an entry, and the last write wins",
    cause="score change",
    tiling=Tiling(block_k=8),
    shows="relative",
    add_score_gradients=_last_write_wins,
)
_wrong_gradients(
    "dO's stride ignored",
    "an expanded or transposed dO",
    cause="layout",
    read_dout=lambda self, dout: ignoring_strides(dout).float(),
)
_wrong_gradients(
    "dP in fp16",
    "overflows, and is rounded before delta is subtracted",
    cause="low precision",
    dp=lambda self, do, v: Tiled.dp(self, do, v).half().float(),
)


def _low_dq(self: Tiled, dq: Tensor, rows: slice, part: Tensor) -> None:
    dq[:, :, rows] = (dq[:, :, rows] + part).bfloat16().float()


def _low(self: Tiled, total: Tensor, rows: slice, keys: slice, part: Tensor) -> None:
    total[:, :, keys] = (total[:, :, keys] + part).bfloat16().float()


_wrong_gradients(
    "dq accumulated in bf16",
    "torch 2.13's CPU flash backward",
    cause="low precision",
    tiling=SMALL,
    add_dq=_low_dq,
)
_wrong_gradients(
    "dk accumulated in bf16", "atomic adds in the dtype", cause="low precision", tiling=SMALL, add_dk=_low
)
_wrong_gradients(
    "dv accumulated in bf16", "atomic adds in the dtype", cause="low precision", tiling=SMALL, add_dv=_low
)

_race = random.Random(0)


def _one_update_lost(self: Tiled, dq: Tensor, rows: slice, part: Tensor) -> None:
    if _race.random() > 1 / 3:
        Tiled.add_dq(self, dq, rows, part)


_wrong_gradients(
    "lost update",
    "a race: dq is read and written by two blocks at once",
    cause="nondeterministic",
    tiling=SMALL,
    add_dq=_one_update_lost,
)
_wrong_gradients("dq of the opposite sign", "delta - dP", ds=lambda self, p, dp, delta: p * (delta - dp))
_wrong_gradients(
    "P of the backward without the bias",
    "the backward recomputes plain scores",
    shows="bias alibi relative",
    masked_backward=lambda self, s, rows, cols: self.masked(
        s - Tiled.biased(self, torch.zeros_like(s), rows, cols), rows, cols
    ),
)


def _swapped(self: Tiled, dq: Tensor, dk: Tensor, dv: Tensor, grads: dict[str, Tensor]) -> Gradients:
    made = Tiled.gradients(self, dq, dk, dv, grads)
    return Gradients(made.dq, made.dv, made.dk, made.scores) if made.dk.shape == made.dv.shape else made


_wrong_gradients("dk and dv swapped", "returned in the wrong order", cause="layout", gradients=_swapped)
