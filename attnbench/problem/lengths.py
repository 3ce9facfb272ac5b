"""Masks defined by lengths: padded batch rows, and documents packed into a row."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np

from attnbench.errors import MaskError
from attnbench.problem.masks import Extent, Leaf, Mask, numbers, short_hash
from attnbench.problem.spans import Ints, Spans, one_span

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from attnbench.problem.masks import Predicate

    Numbers = Sequence[int] | np.ndarray[Any, Any] | Tensor

LONG_TABLE = 4  # a label spells out tables of up to this many numbers


@dataclass(frozen=True, init=False)
class Padding(Leaf):
    """Only the first lengths[b] keys, or the last (side left), are real; queries are not masked."""

    lengths: tuple[int, ...]
    side: Literal["right", "left"] = "right"
    name: ClassVar[str] = "padding"
    takes: ClassVar[str] = (
        "padding(length, ...), one length per batch row, and left after them for left padding"
    )

    def __init__(self, lengths: Numbers | int, side: Literal["right", "left"] = "right") -> None:
        if side not in ("right", "left"):
            raise MaskError(f"padding is on the right or left side, not {side!r}")
        object.__setattr__(self, "lengths", numbers(lengths, "a length of padding"))
        object.__setattr__(self, "side", side)

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...]) -> Mask:
        words = [a for a in arguments[-1:] if isinstance(a, str)]
        lengths = arguments[: len(arguments) - len(words)]
        flat = lengths[0] if len(lengths) == 1 and isinstance(lengths[0], tuple) else lengths
        return cls(flat, *words)  # type: ignore[arg-type]

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls([max(0, extent.k_len - 3 * b) for b in range(extent.batch)]),)

    def __str__(self) -> str:
        side = ["left"] if self.side == "left" else []
        return f"padding({', '.join([*map(str, self.lengths), *side])})"

    @property
    def label(self) -> str:
        short = len(self.lengths) <= LONG_TABLE
        table = ".".join(map(str, self.lengths)) if short else f"-{short_hash(str(self))}"
        return f"padding{table}" + (".left" if self.side == "left" else "")

    @property
    def varies_over_batch(self) -> bool:
        return len(set(self.lengths)) > 1

    def batch_key(self, b: int) -> Hashable:
        return self.lengths[b]

    def check(self, extent: Extent) -> None:
        if len(self.lengths) != extent.batch:
            raise MaskError(
                f"padding has {len(self.lengths)} lengths but batch is {extent.batch}; give one per batch row"
            )
        if max(self.lengths) > extent.k_len:
            row = self.lengths.index(max(self.lengths))
            raise MaskError(
                f"padding of batch row {row} keeps {self.lengths[row]} keys but k_len is {extent.k_len}; "
                "give at most k_len"
            )

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        import torch

        if self.side == "right":
            kept = torch.tensor(self.lengths, device=device)  # [B]
            return lambda b, h, q, k: k < kept[b]
        padded = extent.k_len - torch.tensor(self.lengths, device=device)  # [B]
        return lambda b, h, q, k: k >= padded[b]

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        if self.side == "right":
            return one_span(rows, 0, self.lengths[b], extent.k_len)
        return one_span(rows, extent.k_len - self.lengths[b], extent.k_len, extent.k_len)


@dataclass(frozen=True, init=False)
class Documents(Leaf):
    """Documents packed into one row, each attending only itself: `doc(i) == doc(j)`.

    `lengths` in tokens, one list for all batch rows or one list per batch row. Tokens past the sum
    belong to no document: their rows and columns are empty.
    """

    lengths: tuple[int, ...] | tuple[tuple[int, ...], ...]
    name: ClassVar[str] = "documents"
    takes: ClassVar[str] = (
        "documents(length, ...), or documents([length, ...], ...) with one list per batch row"
    )

    def __init__(self, lengths: Numbers | Sequence[Sequence[int]]) -> None:
        plain: Any = lengths.tolist() if hasattr(lengths, "tolist") else lengths
        nested = isinstance(plain, (list, tuple)) and any(isinstance(p, (list, tuple)) for p in plain)
        what = "a document's length"
        if nested and not all(isinstance(p, (list, tuple)) for p in plain):
            raise MaskError("documents are numbers or lists of numbers, one list per batch row, not both")
        lists = tuple(numbers(p, what) for p in plain) if nested else numbers(plain, what)
        object.__setattr__(self, "lengths", lists)

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...]) -> Documents:
        return cls(arguments[0] if len(arguments) == 1 and isinstance(arguments[0], tuple) else arguments)

    @property
    def lists(self) -> tuple[tuple[int, ...], ...]:
        """The lengths as lists: one for all batch rows, or one per batch row."""
        return self.lengths if self._is_per_batch else (self.lengths,)  # type: ignore[return-value]

    @property
    def _is_per_batch(self) -> bool:
        return isinstance(self.lengths[0], tuple)

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls((extent.q_len // 3, extent.q_len // 2)),)

    def __str__(self) -> str:
        lists = [f"[{', '.join(map(str, lengths))}]" for lengths in self.lists]
        if not self._is_per_batch:
            return f"documents({lists[0][1:-1]})"
        return f"documents([{lists[0]}])" if len(lists) == 1 else f"documents({', '.join(lists)})"

    @property
    def label(self) -> str:
        if sum(map(len, self.lists)) > LONG_TABLE:
            return f"documents-{short_hash(str(self))}"
        mark = ":" if self._is_per_batch else ""
        return "documents" + "".join(mark + ".".join(map(str, lengths)) for lengths in self.lists)

    @property
    def varies_over_batch(self) -> bool:
        return len(set(self.lists)) > 1

    def batch_key(self, b: int) -> Hashable:
        return self._of(b)

    def check(self, extent: Extent) -> None:
        if extent.q_len != extent.k_len:
            raise MaskError(
                f"documents need q_len == k_len, not {extent.q_len} and {extent.k_len}; make them equal"
            )
        if self._is_per_batch and len(self.lists) != extent.batch:
            raise MaskError(
                f"documents has {len(self.lists)} lists but batch is {extent.batch}; "
                "give one per batch row, or one plain list for all"
            )
        for row, lengths in enumerate(self.lists):
            if sum(lengths) > extent.q_len:
                raise MaskError(
                    f"documents of list {row} add up to {sum(lengths)} tokens but q_len is {extent.q_len}; "
                    "give at most q_len"
                )

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        import torch

        table = torch.full(
            (len(self.lists), extent.q_len), -1, dtype=torch.int64
        )  # [B|1, Q]; -1: no document
        for row, lengths in enumerate(self.lists):
            ids = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
            table[row, : ids.numel()] = ids
        document, batched = table.to(device), len(self.lists) > 1

        def same_document(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            row = b if batched else b * 0
            return (document[row, q] == document[row, k]) & (document[row, q] >= 0)

        return same_document

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        bounds = np.concatenate([[0], np.cumsum(self._of(b))])  # [documents + 1]
        # The last bound at or before the row starts its document, however many empty ones share it.
        document = np.searchsorted(bounds, rows, side="right")
        bounds = np.append(bounds, bounds[-1])
        in_some = document < bounds.size - 1
        starts = np.where(in_some, bounds[document - 1], 0)
        return one_span(rows, starts, np.where(in_some, bounds[document], 0), extent.k_len)

    def _of(self, b: int) -> tuple[int, ...]:
        return self.lists[b if len(self.lists) > 1 else 0]
