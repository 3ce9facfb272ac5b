"""Masks defined by the places of query and key alone."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from attnbench.errors import MaskError
from attnbench.problem.masks import Extent, Leaf, Mask, Not, whole
from attnbench.problem.spans import Ints, Spans, one_span

if TYPE_CHECKING:
    import torch

    from attnbench.problem.masks import Predicate


@dataclass(frozen=True)
class Full(Leaf):
    """Every query attends every key."""

    name: ClassVar[str] = "full"
    takes: ClassVar[str] = "full"

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(),)

    def __str__(self) -> str:
        return "full"

    @property
    def label(self) -> str:
        return "full"

    @property
    def is_always(self) -> bool:
        return True

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        return lambda b, h, q, k: (q >= 0) & (k >= 0)

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        return one_span(rows, 0, extent.k_len, extent.k_len)


@dataclass(frozen=True)
class Causal(Leaf):
    """No key after the query: `j <= p` (bottom_right, FlashAttention >= 2.1), `j <= i` (top_left, torch)."""

    align: Literal["bottom_right", "top_left"] = "bottom_right"
    name: ClassVar[str] = "causal"
    takes: ClassVar[str] = "causal or causal(top_left)"

    def __post_init__(self) -> None:
        if self.align not in ("bottom_right", "top_left"):
            raise MaskError(f"causal is aligned bottom_right or top_left, not {self.align!r}")

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(), cls("top_left"))

    def __str__(self) -> str:
        return "causal" if self.align == "bottom_right" else "causal(top_left)"

    @property
    def label(self) -> str:
        return "causal" if self.align == "bottom_right" else "causal.top_left"

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset((str(self),))

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        shift = extent.shift if self.align == "bottom_right" else 0
        return lambda b, h, q, k: k <= q + shift

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        last = rows if self.align == "top_left" else rows + extent.k_len - extent.q_len
        return one_span(rows, 0, last + 1, extent.k_len)


@dataclass(frozen=True, init=False)
class SlidingWindow(Leaf):
    """`p - left <= j <= p + right`; None or inf is unlimited; a model's "window W" is W - 1 to the left."""

    left: int | None
    right: int | None
    name: ClassVar[str] = "window"
    takes: ClassVar[str] = "window(left, right), with inf for unlimited"

    def __init__(self, left: float | None, right: float | None) -> None:
        for side, reach in (("left", left), ("right", right)):
            unlimited = reach is None or (isinstance(reach, float) and reach == math.inf)
            limit = None if unlimited else whole(reach, f"the window's {side} side")
            object.__setattr__(self, side, limit)

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(extent.k_len // 3, extent.k_len // 5),)

    def __str__(self) -> str:
        return f"window({_reach(self.left)}, {_reach(self.right)})"

    @property
    def label(self) -> str:
        return f"window{_reach(self.left)}.{_reach(self.right)}"

    def simplified(self) -> Mask:
        if self.left is None and self.right in (None, 0):
            return Full() if self.right is None else Causal()
        return self

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        first = None if self.left is None else extent.shift - self.left
        last = None if self.right is None else extent.shift + self.right
        if first is not None and last is not None:
            return lambda b, h, q, k: (k >= q + first) & (k <= q + last)
        if last is not None:
            return lambda b, h, q, k: k <= q + last
        return Full().predicate(extent, device) if first is None else lambda b, h, q, k: k >= q + first

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        place = rows + extent.k_len - extent.q_len
        start = 0 if self.left is None else place - self.left
        end = extent.k_len if self.right is None else place + self.right + 1
        return one_span(rows, start, end, extent.k_len)


@dataclass(frozen=True)
class PrefixLM(Leaf):
    """Every query attends the first n keys; beyond them attention is causal: `j < n or j <= p`."""

    n: int
    name: ClassVar[str] = "prefix"
    takes: ClassVar[str] = "prefix(n)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "the prefix's length"))

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(extent.k_len // 5),)

    def __str__(self) -> str:
        return f"prefix({self.n})"

    @property
    def label(self) -> str:
        return f"prefix{self.n}"

    def simplified(self) -> Mask:
        return self if self.n else Causal()

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        n, shift = self.n, extent.shift
        return lambda b, h, q, k: (k < n) | (k <= q + shift)

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        return one_span(rows, 0, np.maximum(self.n, rows + extent.k_len - extent.q_len + 1), extent.k_len)


@dataclass(frozen=True)
class GlobalTokens(Leaf):
    """The first n tokens attend every token, and every token attends them: `j < n or 0 <= p < n`."""

    n: int
    name: ClassVar[str] = "global"
    takes: ClassVar[str] = "global(n)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", whole(self.n, "the number of global tokens"))

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(3),)

    def __str__(self) -> str:
        return f"global({self.n})"

    @property
    def label(self) -> str:
        return f"global{self.n}"

    def simplified(self) -> Mask:
        return self if self.n else Not(Full())

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        n, shift = self.n, extent.shift
        return lambda b, h, q, k: (k < n) | ((q + shift >= 0) & (q + shift < n))

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        place = rows + extent.k_len - extent.q_len
        end = np.where((place >= 0) & (place < self.n), extent.k_len, self.n)
        return one_span(rows, 0, end, extent.k_len)


@dataclass(frozen=True)
class Dilated(Leaf):
    """Every s-th key, counted from the query's own place, on both sides: `(p - j) % s == 0`."""

    s: int
    name: ClassVar[str] = "dilated"
    takes: ClassVar[str] = "dilated(step)"

    def __post_init__(self) -> None:
        object.__setattr__(self, "s", whole(self.s, "the dilation", least=1))

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        return (cls(3),)

    def __str__(self) -> str:
        return f"dilated({self.s})"

    @property
    def label(self) -> str:
        return f"dilated{self.s}"

    def simplified(self) -> Mask:
        return Full() if self.s == 1 else self

    @property
    def dilations(self) -> frozenset[int]:
        return frozenset((self.s,))

    def with_dilations(self, holding: frozenset[int]) -> Mask:
        return Full() if self.s in holding else Not(Full())

    def max_spans(self, extent: Extent) -> int:
        return -(-extent.k_len // self.s)

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        s, shift = self.s, extent.shift
        return lambda b, h, q, k: (q + shift - k) % s == 0

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        first = (rows + extent.k_len - extent.q_len) % self.s
        keys = first[:, None] + self.s * np.arange(self.max_spans(extent), dtype=np.int64)
        starts = np.minimum(keys, extent.k_len)
        return starts, np.minimum(keys + 1, extent.k_len)


def _reach(tokens: int | None) -> str:
    return "inf" if tokens is None else str(tokens)
