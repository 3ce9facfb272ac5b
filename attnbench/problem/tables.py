"""Masks that carry a table of pairs: layouts of blocks, and explicit tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Hashable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from attnbench.errors import MaskError
from attnbench.problem.masks import Extent, Leaf, Mask, numbers, short_hash, whole
from attnbench.problem.spans import Ints, Spans, runs

if TYPE_CHECKING:
    import torch

    from attnbench.problem.masks import Predicate


@dataclass(frozen=True, init=False)
class BlockSparse(Leaf):
    """The blocks of a layout of 0 and 1: `layout[(h,) i // block, j // block]`."""

    layout: tuple[Any, ...]  # [rows, columns] or [H, rows, columns], nested tuples of 0 and 1
    block: int
    name: ClassVar[str] = "block_sparse"
    takes: ClassVar[str] = "block_sparse(layout, block), layout as [[1, 0], [1, 1]] or one such list per head"

    def __init__(self, layout: Any, block: int) -> None:
        table = _zeros_and_ones(layout, "a block_sparse layout", (2, 3))
        object.__setattr__(self, "layout", _tuples(table.tolist()))
        object.__setattr__(self, "block", whole(block, "the block's length", least=1))

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(_all_but_every_third(extent, -(-extent.q_len // 16), -(-extent.k_len // 16)), 16),)

    @cached_property
    def blocks(self) -> NDArray[np.bool_]:
        """The layout as an array: bool [H|1, rows, columns]."""
        table = np.asarray(self.layout, dtype=bool)
        return table if table.ndim == 3 else table[None]

    @property
    def _is_per_head(self) -> bool:
        return isinstance(self.layout[0][0], tuple)

    def __str__(self) -> str:
        return f"block_sparse({_brackets(self.layout)}, {self.block})"

    @property
    def label(self) -> str:
        return f"block_sparse{self.block}-{short_hash(str(self))}"

    @property
    def varies_over_heads(self) -> bool:
        return bool((self.blocks != self.blocks[:1]).any())

    def max_spans(self, extent: Extent) -> int:
        return (self.blocks.shape[2] + 1) // 2

    def check(self, extent: Extent) -> None:
        heads, rows, columns = self.blocks.shape
        if self._is_per_head and heads != extent.heads:
            raise MaskError(
                f"block_sparse has {heads} layouts but there are {extent.heads} query heads; "
                "give one per head, or one for all"
            )
        for what, blocks, tokens in (("q_len", rows, extent.q_len), ("k_len", columns, extent.k_len)):
            if blocks * self.block < tokens:
                raise MaskError(
                    f"block_sparse covers {blocks} x {self.block} = {blocks * self.block} tokens but {what} "
                    f"is {tokens}; give a larger layout or block"
                )

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        import torch

        table, block = torch.from_numpy(self.blocks.copy()).to(device), self.block  # [H|1, rows, columns]
        per_head = table.shape[0] > 1
        return lambda b, h, q, k: table[h if per_head else h * 0, q // block, k // block]

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        starts, ends = self._runs[h if len(self._runs) > 1 else 0]
        line = rows // self.block
        longest = extent.k_len
        return np.minimum(starts[line] * self.block, longest), np.minimum(ends[line] * self.block, longest)

    @cached_property
    def _runs(self) -> list[Spans]:
        return [runs(layout) for layout in self.blocks]


@dataclass(frozen=True, init=False)
class Explicit(Leaf):
    """The pairs of a tensor of True and False, [Q, K], [H, Q, K] or [B|1, H|1, Q, K].

    Takes a torch tensor, an array or nested lists; kept as four sizes and packed bits, first bit high.
    """

    shape: tuple[int, int, int, int]
    bits: bytes
    name: ClassVar[str] = "explicit"
    takes: ClassVar[str] = "explicit([[1, 0], [1, 1]]), or explicit(shape, x...) with the packed bits in hex"

    def __init__(self, tensor: Any) -> None:
        table = _zeros_and_ones(tensor, "an explicit mask", (2, 3, 4))
        table = table.reshape((1,) * (4 - table.ndim) + table.shape)
        object.__setattr__(self, "shape", tuple(table.shape))
        object.__setattr__(self, "bits", np.packbits(table.ravel()).tobytes())

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(_all_but_every_third(extent, extent.q_len, extent.k_len)),)

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...]) -> Explicit:
        if len(arguments) != 2:
            return cls(*arguments)
        shape, packed = numbers(arguments[0], "a size of explicit"), arguments[1]
        size = math.prod(shape)
        digits = 2 * -(-size // 8)
        if not isinstance(packed, str) or not re.fullmatch(rf"x[0-9a-fA-F]{{{digits}}}", packed):
            raise MaskError(f"explicit of shape {list(shape)} takes x and {digits} hex digits")
        table = np.unpackbits(np.frombuffer(bytes.fromhex(packed[1:]), dtype=np.uint8))
        if table[size:].any():
            raise MaskError(f"explicit of shape {list(shape)} has {size} bits; those after them must be 0")
        return cls(table[:size].reshape(shape))

    @cached_property
    def array(self) -> NDArray[np.bool_]:
        """The mask as an array: bool [B|1, H|1, Q, K]."""
        packed = np.frombuffer(self.bits, dtype=np.uint8)
        return np.unpackbits(packed, count=math.prod(self.shape)).astype(bool).reshape(self.shape)

    def __str__(self) -> str:
        return f"explicit({_brackets(self.shape)}, x{self.bits.hex()})"

    @property
    def label(self) -> str:
        return f"explicit-{short_hash(str(self))}"

    @property
    def varies_over_batch(self) -> bool:
        return self.shape[0] > 1

    @property
    def varies_over_heads(self) -> bool:
        return self.shape[1] > 1

    def batch_key(self, b: int) -> Hashable:
        return b

    def max_spans(self, extent: Extent) -> int:
        return extent.k_len  # `runs` reads the dense row

    def check(self, extent: Extent) -> None:
        sizes = (extent.batch, extent.heads, extent.q_len, extent.k_len)
        broadcast = (1, 1, None, None)
        fits = (own in (size, one) for own, size, one in zip(self.shape, sizes, broadcast, strict=True))
        if not all(fits):
            raise MaskError(
                f"explicit has shape {list(self.shape)} but [batch, heads, q_len, k_len] is {list(sizes)}; "
                "give that, or 1 for a shared batch or heads"
            )

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        import torch

        table = torch.from_numpy(self.array.copy()).to(device)  # [B|1, H|1, Q, K]
        per_batch, per_head = self.varies_over_batch, self.varies_over_heads
        return lambda b, h, q, k: table[b if per_batch else b * 0, h if per_head else h * 0, q, k]

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        return runs(self.array[b if self.varies_over_batch else 0, h if self.varies_over_heads else 0, rows])


def _all_but_every_third(extent: Extent, rows: int, columns: int) -> NDArray[np.bool_]:
    """Two of three entries, others for each head: bool [H, rows, columns]."""
    h, i, j = np.ogrid[: extent.heads, :rows, :columns]
    return (h + i + j) % 3 > 0


def _zeros_and_ones(values: Any, what: str, dimensions: tuple[int, ...]) -> NDArray[np.bool_]:
    plain = values.detach().cpu().numpy() if hasattr(values, "detach") else values
    try:
        table = np.asarray(plain)
    except ValueError:
        raise MaskError(f"{what} has rows of different lengths; make them equal") from None
    if table.ndim not in dimensions or table.size == 0:
        ways = " or ".join(map(str, dimensions))
        raise MaskError(
            f"{what} has {ways} dimensions and is not empty; this one has shape {list(table.shape)}"
        )
    if table.dtype.kind not in "biu" or not ((table == 0) | (table == 1)).all():
        raise MaskError(
            f"{what} holds True (may attend) and False, or 1 and 0, only; compare a float mask with 0"
        )
    return table.astype(bool)


def _tuples(nested: Any) -> Any:
    return tuple(map(_tuples, nested)) if isinstance(nested, list) else int(nested)


def _brackets(nested: Any) -> str:
    return f"[{','.join(map(_brackets, nested))}]" if isinstance(nested, tuple) else str(nested)
