"""The gradients of biases, relative tables and sinks: launches, and the sums that finish them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .bias_gradient import bias_gradient_kernel
from .changes import Changes
from .launch import Launch, Plan
from .layout import blocks_of, within_reach

TABLE_GRADIENT_BYTES = 256 << 20  # of scratch at a time for the gradient of a relative bias's table


def score_gradients(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, changes: Changes, lse: Tensor, delta: Tensor, dout: Tensor
) -> dict[str, Tensor]:
    """dbias, dtable and dsink in float32, if the case has them."""
    gradients: dict[str, Tensor] = {}
    q, k, v, dout = map(within_reach, (q, k, v, dout))
    operands = (q, k, v, changes, lse, delta, dout)
    if changes.bias is not None:
        over_b, over_h, over_q, over_k = (size > 1 for size in changes.bias.shape)
        tile = plan.configuration("bias_gradient")
        blocks = blocks_of(plan.case.q_len, tile.block_q)
        shape = list(changes.bias.shape)
        partial = torch.zeros(
            shape if over_q else [*shape[:2], blocks, shape[3]], dtype=torch.float32, device=q.device
        )  # [B|1, H|1, Q or blocks, K|1]
        _add_logit_gradients(
            plan, partial, partial.stride(), (over_b, over_h, over_q, over_k), 0, blocks, *operands
        )
        gradients["dbias"] = partial if over_q else partial.sum(dim=2, keepdim=True)
    if changes.relative is not None:
        gradients["dtable"] = _table_gradient(plan, changes, *operands)
    if changes.sink is not None:
        # dL/dsink = sum of dS of a key whose value is 0: P_sink (0 - delta).
        weight = torch.exp(changes.sink.float()[None, :, None] - lse)  # [B, H, Q]
        gradients["dsink"] = -(weight * delta).sum(dim=(0, 2))
    return gradients


def _add_logit_gradients(
    plan: Plan, gradient: Tensor, strides: tuple[int, ...], over: tuple[bool, ...], first_block: int, blocks: int,
    q: Tensor, k: Tensor, v: Tensor, changes: Changes, lse: Tensor, delta: Tensor, dout: Tensor,
) -> None:  # fmt: skip
    """Add dS of some query blocks, summed over the dimensions that `over` (b, h, q, k) lacks, to `gradient`."""
    case = plan.case
    tile = plan.configuration("bias_gradient")
    walk = plan.walk("keys", tile)
    own_batch, own_heads = case.batch if over[0] else 1, case.q_heads if over[1] else 1
    arguments = (
        *plan.read((q, k, v, dout), tile), lse, delta, gradient,
        q.stride(), k.stride(), v.stride(), dout.stride(), strides,
        first_block, blocks, case.batch // own_batch, case.q_heads // own_heads, own_heads,
        *plan.sizes, changes.arguments, plan.mask.table, walk.arguments,
    )  # fmt: skip
    constants = plan.constants(tile, changes) | {"OVER_Q": over[2], "OVER_K": over[3]}
    plan.start(Launch(bias_gradient_kernel, blocks * own_batch * own_heads, arguments, constants, tile))


def _table_gradient(plan: Plan, changes: Changes, *operands: Any) -> Tensor:
    """The gradient of a relative bias's table [H, entries], by chunks of queries so that memory stays bounded."""
    case, q = plan.case, operands[0]
    assert changes.row is not None
    assert changes.column is not None
    tile = plan.configuration("bias_gradient")
    blocks = blocks_of(case.q_len, tile.block_q)
    if changes.entry is None:
        dense = torch.zeros(case.q_heads, case.q_len, case.k_len, dtype=torch.float32, device=q.device)
        _add_logit_gradients(
            plan, dense, (0, *dense.stride()), (False, True, True, True), 0, blocks, *operands
        )
        entry = (changes.row[:, None] - changes.column[None, :]).long()  # [Q, K]
        return _summed_by(entry.flatten(), dense.flatten(1), changes.entries)
    # Entries follow from j - i: with each row written one further left, diagonals become columns to sum.
    rows = max(1, TABLE_GRADIENT_BYTES // (4 * case.q_heads * case.k_len * tile.block_q)) * tile.block_q
    by_offset = torch.zeros(case.q_heads, case.q_len + case.k_len - 1, dtype=torch.float32, device=q.device)
    for start in range(0, case.q_len, rows):
        height = min(rows, case.q_len - start)
        width = case.k_len + height - 1
        skewed = torch.zeros(case.q_heads, height, width, dtype=torch.float32, device=q.device)
        # Row r of the chunk and key j go to row r, column height - 1 - r + j.
        origin = skewed.view(-1)[height - 1 :]
        strides = (0, height * width, width - 1, 1)
        _add_logit_gradients(plan, 
            origin, strides, (False, True, True, True), start // tile.block_q,
            blocks_of(height, tile.block_q), *operands,
        )  # fmt: skip
        first = case.q_len - start - height  # the offset q_len - 1 - i + j of the chunk's first column
        by_offset[:, first : first + width] += skewed.sum(dim=1)
    return _summed_by(changes.entry, by_offset, changes.entries)


def _summed_by(entry: Tensor, values: Tensor, entries: int) -> Tensor:
    """The sums [H, entries] of the values [H, n] with the same entry [n]; index_put_ adds in a fixed order."""
    heads = torch.arange(values.shape[0], device=values.device)[:, None].expand_as(values)
    total = torch.zeros(values.shape[0], entries, dtype=values.dtype, device=values.device)
    return total.index_put_((heads, entry.expand_as(values)), values, accumulate=True)
