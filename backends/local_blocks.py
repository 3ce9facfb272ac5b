"""Local attention in blocks: each block of queries computes only the keys that it can reach.

Work and memory follow the reach of the mask: for a window of W tokens a block of queries computes about
BLOCK + W columns. For a mask of unlimited reach it is attention in blocks of queries, which saves memory only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnbench.backend import AutogradPrepared, Backend, Capabilities, Prepared
from attnbench.problem import Case, Inputs, Score

from ._dense import repeat_heads, sink_of, softcap_of, softmax_with_sink

BLOCK = 64


@dataclass(frozen=True)
class Region:
    """A block of queries, the keys that any of them may attend, and the allowed pairs: bool [B|1, H|1, R, C]."""

    rows: slice
    keys: slice
    permitted: Tensor


def regions(case: Case, device: torch.device) -> list[Region]:
    """The regions of a case, from the spans of its mask."""
    batches = range(case.batch) if case.mask.varies_over_batch else range(1)
    heads = range(case.q_heads) if case.mask.varies_over_heads else range(1)
    predicate = case.mask.predicate(case.extent, device)
    b = torch.arange(len(batches), device=device)[:, None, None, None]
    h = torch.arange(len(heads), device=device)[None, :, None, None]
    blocks = []
    for start in range(0, case.q_len, BLOCK):
        rows = np.arange(start, min(start + BLOCK, case.q_len))
        first, last = case.k_len, 0
        for batch in batches:
            for head in heads:
                starts, ends = case.mask.spans(case.extent, batch, head, rows)
                some = ends > starts
                if some.any():
                    first, last = min(first, int(starts[some].min())), max(last, int(ends[some].max()))
        if last <= first:
            first, last = 0, 1  # one forbidden key, so that rows without a key give zeros like any other
        q = torch.from_numpy(rows).to(device)[None, None, :, None]
        k = torch.arange(first, last, device=device)[None, None, None, :]
        shape = (len(batches), len(heads), len(rows), last - first)
        blocks.append(
            Region(slice(start, start + len(rows)), slice(first, last), predicate(b, h, q, k).expand(shape))
        )
    return blocks


class _Cut(torch.autograd.Function):
    """Slices of the keys or values [B, H, K, D] in float32; their gradients are added up in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, slices: list[slice]) -> tuple[Tensor, ...]:
        ctx.slices, ctx.shape, ctx.dtype = slices, x.shape, x.dtype
        wide = x.float()
        return tuple(wide[:, :, here] for here in slices)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = torch.zeros(ctx.shape, dtype=torch.float32, device=grads[0].device)
        for here, grad in zip(ctx.slices, grads, strict=True):
            total[:, :, here] += grad
        return total.to(ctx.dtype), None


class _Product(torch.autograd.Function):
    """left [B, H, R, X] times right [B, H, X, Y] in left's dtype; right and its gradient are float32.

    A block's share of that gradient is one of many: rounded to the dtype, its error stays when the sum cancels.
    """

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return left @ right.to(left.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        left, right = ctx.saved_tensors
        of_left = grad @ right.to(grad.dtype).transpose(-2, -1)
        return of_left, left.float().transpose(-2, -1) @ grad.float()


class LocalBlocks(Backend):
    capabilities = Capabilities(
        scores=frozenset({"softcap", "sink"}),
        contract="dense",
        source="Image Transformer, section 3.3, local self-attention in blocks (arXiv 1802.05751)",
    )

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        def compute(q: Tensor, k: Tensor, v: Tensor, changes: tuple[Score, ...]) -> Tensor:
            k, v = repeat_heads(k, case.group), repeat_heads(v, case.group)
            cap, sink = softcap_of(changes), sink_of(changes)
            if sink is not None:
                sink = sink.float()  # every block has a share of its gradient
            windows = [region.keys for region in made]
            keys, values = _Cut.apply(k, windows), _Cut.apply(v, windows)
            outs = []
            for region, some_keys, some_values in zip(made, keys, values, strict=True):
                scores = (
                    _Product.apply(q[:, :, region.rows], some_keys.transpose(-2, -1)) * case.softmax_scale
                )
                if cap is not None:
                    scores = cap * torch.tanh(scores / cap)
                outs.append(_Product.apply(softmax_with_sink(scores, region.permitted, sink), some_values))
            return torch.cat(outs, dim=2)  # [B, H, Q, Dv]

        prepared = AutogradPrepared(case, inputs, compute, kernel=f"blocks of {BLOCK} queries", reusable=True)
        with prepared.step("mask"):
            made = regions(case, inputs.device)
        return prepared


backend = LocalBlocks()
