"""The mask algebra: Mask and what each mask defines, `&`, `|` and `~`, and Leaf.

True means *may attend*. With `i` the query and `j` the key, `p = i + k_len - q_len` is the query's own place
among the keys. A mask is defined twice: by its predicate and by its spans; tests hold the two together.
"""

from __future__ import annotations

import hashlib
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from attnbench.errors import MaskError
from attnbench.problem.blockmap import BlockMap, build_block_map
from attnbench.problem.counting import count_pairs
from attnbench.problem.spans import Ints, Spans, complement, intersection, union

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    Predicate = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

MANY_SPANS = frozenset(("block_sparse", "dilated", "explicit"))
HASH_CHARS = 8
LONGEST = 1 << 30  # no length or window is longer, so that p - left fits in the 32 bits of a GPU kernel


@dataclass(frozen=True)
class Extent:
    """The size of a problem: batch rows, query heads, and lengths in tokens."""

    batch: int
    heads: int
    q_len: int
    k_len: int

    def __post_init__(self) -> None:
        for name in ("batch", "heads", "q_len", "k_len"):
            if not 1 <= getattr(self, name) <= LONGEST:
                raise MaskError(f"{name} is between 1 and 2^30, not {getattr(self, name)}")

    @property
    def shift(self) -> int:
        """`p - i`: k_len - q_len."""
        return self.k_len - self.q_len


class Mask(ABC):
    """A symbolic mask; subclasses are frozen dataclasses that compare by structure.

    A leaf defines `name`, `takes`, `__str__`, `label`, `predicate`, `spans`, `examples` and, unless the defaults
    hold, `check`, `max_spans`, `varies_over_batch`, `varies_over_heads` and `simplified`.
    """

    precedence: ClassVar[int] = 4  # of the text: | 1, & 2, ~ 3, leaves 4
    is_combined: ClassVar[bool] = False

    @abstractmethod
    def __str__(self) -> str:
        """The text that `parse_mask` reads back as an equal mask."""

    @property
    @abstractmethod
    def label(self) -> str:
        """The text for case ids: only `[A-Za-z0-9_.:+-]`, different for different masks."""

    @property
    @abstractmethod
    def kinds(self) -> frozenset[str]:
        """The names of the leaves in this mask, as backends declare them."""

    @abstractmethod
    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        """`(b, h, q, k) -> bool`, on integer tensors that broadcast; a mask_mod for FlexAttention."""

    @abstractmethod
    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        """The keys that each query of `rows` (int64 [R]) may attend: (starts, ends), int64 [R, S]; see spans."""

    def check(self, extent: Extent) -> None:
        """Raise MaskError if this mask does not fit the extent."""
        return

    def max_spans(self, extent: Extent) -> int:
        """An upper bound on the ranges per row."""
        return 1

    @property
    def varies_over_batch(self) -> bool:
        """Whether batch rows may attend different keys."""
        return False

    @property
    def varies_over_heads(self) -> bool:
        """Whether heads may attend different keys."""
        return False

    @property
    def has_few_spans(self) -> bool:
        """Whether a row has a handful of ranges at any length."""
        return not self.kinds & MANY_SPANS

    @property
    def is_always(self) -> bool:
        """Whether this is written as `full`, up to double negation."""
        return False

    @property
    def is_never(self) -> bool:
        """Whether this is written as `~full`, up to double negation."""
        return False

    @property
    def dilations(self) -> frozenset[int]:
        """The steps of all `dilated` leaves."""
        return frozenset()

    def with_dilations(self, holding: frozenset[int]) -> Mask:
        """This mask with `dilated(s)` replaced by `full` for s in `holding`, else by `~full`."""
        return self

    def batch_key(self, b: int) -> Hashable:
        """Equal for batch rows that may attend the same keys."""
        return None

    def simplified(self) -> Mask:
        """An equivalent mask with fewer parts, if one is obvious."""
        return self

    def materialize(
        self,
        batch: int = 1,
        heads: int = 1,
        q_len: int = 8,
        k_len: int = 8,
        device: torch.device | str = "cpu",
    ) -> Tensor:
        """The mask as a bool tensor [B|1, H|1, Q, K], of size 1 in dimensions over which it does not vary."""
        import torch

        extent = Extent(batch, heads, q_len, k_len)
        self.check(extent)
        shape = (batch if self.varies_over_batch else 1, heads if self.varies_over_heads else 1, q_len, k_len)
        b, h, q, k = (
            torch.arange(size, device=device).view([-1 if axis == place else 1 for axis in range(4)])
            for place, size in enumerate(shape)
        )
        return self.predicate(extent, device)(b, h, q, k).expand(shape).contiguous()  # [B|1, H|1, Q, K]

    def pairs(self, extent: Extent) -> int:
        """The exact number of allowed (query, key) pairs over batch and heads."""
        return count_pairs(self, extent)

    def block_map(self, extent: Extent, block_q: int, block_k: int) -> BlockMap:
        """The empty, partial and full tiles of block_q queries x block_k keys."""
        return build_block_map(self, extent, block_q, block_k)

    def __and__(self, other: Mask) -> Mask:
        return And(self, other) if isinstance(other, Mask) else NotImplemented

    def __or__(self, other: Mask) -> Mask:
        return Or(self, other) if isinstance(other, Mask) else NotImplemented

    def __invert__(self) -> Mask:
        return Not(self)


def short_hash(text: str) -> str:
    """Eight hex digits in place of a long table, for labels."""
    return hashlib.sha256(text.encode()).hexdigest()[:HASH_CHARS]


def _grouped(text: str, inner: int, outer: int, opening: str, closing: str) -> str:
    return f"{opening}{text}{closing}" if inner < outer else text


@dataclass(frozen=True)
class _Joined(Mask):
    left: Mask
    right: Mask
    is_combined: ClassVar[bool] = True
    sign: ClassVar[str]
    label_sign: ClassVar[str]

    def __post_init__(self) -> None:
        for side in (self.left, self.right):
            if not isinstance(side, Mask):
                raise MaskError(f"{self.sign} joins two masks, not {side!r}; parse_mask reads a text")

    def __str__(self) -> str:
        left = _grouped(str(self.left), self.left.precedence, self.precedence, "(", ")")
        # The text is left-associative: a right operand of the same operator needs its parentheses.
        right = _grouped(str(self.right), self.right.precedence, self.precedence + 1, "(", ")")
        return f"{left} {self.sign} {right}"

    @property
    def label(self) -> str:
        left = _grouped(self.left.label, self.left.precedence, self.precedence, "_", "_")
        right = _grouped(self.right.label, self.right.precedence, self.precedence + 1, "_", "_")
        return f"{left}{self.label_sign}{right}"

    @property
    def terms(self) -> tuple[Mask, ...]:
        """The operands of a chain of this operator, in order, however it was grouped."""
        sides = (self.left, self.right)
        return tuple(t for side in sides for t in (side.terms if type(side) is type(self) else (side,)))

    @property
    def kinds(self) -> frozenset[str]:
        return self.left.kinds | self.right.kinds

    def check(self, extent: Extent) -> None:
        self.left.check(extent)
        self.right.check(extent)

    def max_spans(self, extent: Extent) -> int:
        return self.left.max_spans(extent) + self.right.max_spans(extent)

    @property
    def varies_over_batch(self) -> bool:
        return self.left.varies_over_batch or self.right.varies_over_batch

    @property
    def varies_over_heads(self) -> bool:
        return self.left.varies_over_heads or self.right.varies_over_heads

    @property
    def dilations(self) -> frozenset[int]:
        return self.left.dilations | self.right.dilations

    def with_dilations(self, holding: frozenset[int]) -> Mask:
        return type(self)(self.left.with_dilations(holding), self.right.with_dilations(holding))

    def batch_key(self, b: int) -> Hashable:
        return self.left.batch_key(b), self.right.batch_key(b)


@dataclass(frozen=True)
class And(_Joined):
    """The pairs that both masks allow."""

    precedence: ClassVar[int] = 2
    sign: ClassVar[str] = "&"
    label_sign: ClassVar[str] = "+"

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        left, right = self.left.predicate(extent, device), self.right.predicate(extent, device)
        return lambda b, h, q, k: left(b, h, q, k) & right(b, h, q, k)

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        left, right = self.left.spans(extent, b, h, rows), self.right.spans(extent, b, h, rows)
        return intersection(left, right, extent.k_len)

    def simplified(self) -> Mask:
        left, right = self.left.simplified(), self.right.simplified()
        if left.is_always or right.is_never or left == right:
            return right
        return left if right.is_always or left.is_never else And(left, right)


@dataclass(frozen=True)
class Or(_Joined):
    """The pairs that either mask allows."""

    precedence: ClassVar[int] = 1
    sign: ClassVar[str] = "|"
    label_sign: ClassVar[str] = ".or."

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        left, right = self.left.predicate(extent, device), self.right.predicate(extent, device)
        return lambda b, h, q, k: left(b, h, q, k) | right(b, h, q, k)

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        return union(self.left.spans(extent, b, h, rows), self.right.spans(extent, b, h, rows))

    def simplified(self) -> Mask:
        left, right = self.left.simplified(), self.right.simplified()
        if left.is_never or right.is_always or left == right:
            return right
        return left if right.is_never or left.is_always else Or(left, right)


@dataclass(frozen=True)
class Not(Mask):
    """The pairs that the mask forbids."""

    mask: Mask
    precedence: ClassVar[int] = 3
    is_combined: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not isinstance(self.mask, Mask):
            raise MaskError(f"~ negates a mask, not {self.mask!r}; parse_mask reads a text")

    def __str__(self) -> str:
        return "~" + _grouped(str(self.mask), self.mask.precedence, self.precedence, "(", ")")

    @property
    def label(self) -> str:
        return "not." + _grouped(self.mask.label, self.mask.precedence, self.precedence, "_", "_")

    @property
    def kinds(self) -> frozenset[str]:
        return self.mask.kinds

    def check(self, extent: Extent) -> None:
        self.mask.check(extent)

    def max_spans(self, extent: Extent) -> int:
        return self.mask.max_spans(extent) + 1

    @property
    def varies_over_batch(self) -> bool:
        return self.mask.varies_over_batch

    @property
    def varies_over_heads(self) -> bool:
        return self.mask.varies_over_heads

    @property
    def is_always(self) -> bool:
        return self.mask.is_never

    @property
    def is_never(self) -> bool:
        return self.mask.is_always

    @property
    def dilations(self) -> frozenset[int]:
        return self.mask.dilations

    def with_dilations(self, holding: frozenset[int]) -> Mask:
        return Not(self.mask.with_dilations(holding))

    def batch_key(self, b: int) -> Hashable:
        return self.mask.batch_key(b)

    def predicate(self, extent: Extent, device: torch.device | str = "cpu") -> Predicate:
        inner = self.mask.predicate(extent, device)
        return lambda b, h, q, k: ~inner(b, h, q, k)

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        return complement(self.mask.spans(extent, b, h, rows), extent.k_len)

    def simplified(self) -> Mask:
        inner = self.mask.simplified()
        return inner.mask if isinstance(inner, Not) else Not(inner)


def whole(value: object, what: str, least: int = 0) -> int:
    """The value as an int of at least `least`; raises a MaskError that names `what`."""
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise MaskError(f"{what} is a whole number, not {value!r}") from None
    if not least <= number <= LONGEST:
        raise MaskError(f"{what} is between {least} and 2^30, not {number}")
    return number


def numbers(values: Any, what: str) -> tuple[int, ...]:
    """A list, array or tensor of whole numbers as a tuple, of at least one."""
    plain = values.tolist() if hasattr(values, "tolist") else values
    plain = plain if isinstance(plain, (list, tuple)) else [plain]
    if not plain:
        raise MaskError(f"{what} needs at least one number, 0 if there are none")
    return tuple(whole(value, what) for value in plain)


class Leaf(Mask):
    """A mask that is not made of others; `name` is its word in texts."""

    name: ClassVar[str]
    takes: ClassVar[str]  # the form of its text, shown in errors

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset((self.name,))

    @classmethod
    def examples(cls, extent: Extent) -> tuple[Mask, ...]:
        """One mask of each kind of this leaf, sized for the extent; the battery and the tests use them."""
        raise NotImplementedError(f"{cls.__name__} is in the grammar and needs examples(extent)")

    @classmethod
    def from_arguments(cls, arguments: tuple[Any, ...]) -> Mask:
        """The mask of the arguments of a text; raises MaskError or TypeError if they are wrong."""
        return cls(*arguments)
