"""The layout of tensors in memory, and how their tiles are fetched."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .configurations import Configuration
from .tiles import chunks

LONGEST_TILE = 256  # rows
FURTHEST_ROW = (1 << 31) // LONGEST_TILE  # elements from one row to the next that 32 bits span over a tile


def fetched(x: Tensor, rows: int, tile: Configuration) -> Tensor | TensorDescriptor:
    """The operand as kernels take it: a descriptor of tiles of `rows` if wanted and possible, or the tensor.

    The copy engine needs 16-byte alignment, a contiguous last dimension, and one chunk of columns.
    """
    d0, d1 = chunks(x.shape[3])
    aligned = x.stride(3) == 1 and all(s > 0 and s * x.element_size() % 16 == 0 for s in x.stride()[:3])
    if not tile.descriptors or d1 or not aligned or (x.device.type != "meta" and x.data_ptr() % 16):
        return x
    return TensorDescriptor(x, list(x.shape), list(x.stride()), [1, 1, rows, d0])


def within_reach(x: Tensor) -> Tensor:
    """The tensor, or a contiguous copy if its rows lie so far apart that 32 bits do not span a tile.

    Such rows are 2^23 elements apart, e.g. [S, B, H, D] with 8300 batch rows; wider offsets in every load would cost
    all other cases registers.
    """
    return x if _reaches(x) else x.contiguous()


def _reaches(x: Tensor) -> bool:
    return x.stride(2) < FURTHEST_ROW and x.stride(3) * x.shape[3] < 1 << 31


def blocks_of(length: int, block: int) -> int:
    return -(-length // block)


def empty_like_with(x: Tensor, columns: int) -> Tensor:
    """An empty tensor [B, heads, S, columns], with the dimensions in the order that x has in memory.

    The kernel writes all of it. The result is contiguous if x is expanded or overlapping, or if its rows or those of
    the result lie too far apart.
    """
    shape = (*x.shape[:3], columns)
    if all(s > 0 for s in x.stride()) and x.stride(3) == 1:
        order = sorted(range(3), key=x.stride, reverse=True)
        row = columns * prod(x.shape[axis] for axis in order[order.index(2) + 1 :])  # from one to the next
        if _reaches(x) and row < FURTHEST_ROW:
            made = torch.empty([shape[axis] for axis in (*order, 3)], dtype=x.dtype, device=x.device)
            return made.permute([order.index(axis) for axis in range(3)] + [3])
    return torch.empty(shape, dtype=x.dtype, device=x.device)
