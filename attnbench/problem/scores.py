"""The changes of a score before the softmax, besides the mask: softcap, ALiBi, biases and the sink.

They apply in canonical order, in whatever order they are written: scale, softcap, all biases, mask, sink, softmax.
A score change describes its tensor (dimensions, spread); `inputs` draws it from the seed and binds it with `bound`.
Equality ignores a bound tensor: two cases with the same description are equal.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

from attnbench.errors import ScoreError
from attnbench.problem.grammar import parse_call

if TYPE_CHECKING:
    from torch import Tensor

    from attnbench.problem.masks import Extent


class Score(ABC):
    """One change of the scores; subclasses are frozen dataclasses.

    `kind` is its word in texts, ids and capabilities. `tensor` is None until bound, and always for a change without
    one. `gradient` names the gradient of the tensor in results (`dbias`), or None.
    """

    kind: ClassVar[str]
    gradient: ClassVar[str | None] = None
    tensor: Tensor | None = None

    @abstractmethod
    def __str__(self) -> str:
        """The text that `parse_score` reads back."""

    @property
    def label(self) -> str:
        """The text for case ids: only `[A-Za-z0-9_.:+-]`."""
        return (
            str(self).replace("(", "").replace(")", "").replace(",", "_").replace(" ", "").replace("-", "m")
        )

    def tensor_shape(self, extent: Extent) -> tuple[int, ...] | None:
        """The shape of the tensor that this change needs at this extent, or None."""
        return None

    def check(self, extent: Extent) -> None:
        """Raise ScoreError if this change does not fit the extent."""

    def bound(self, tensor: Tensor) -> Score:
        """The same change carrying its tensor."""
        return replace(self, tensor=tensor)  # type: ignore[type-var]


def _number(value: float) -> str:
    """The shortest text that reads back as the same float: 50, 0.02."""
    return str(int(value)) if value == int(value) else repr(value)


@dataclass(frozen=True)
class Softcap(Score):
    """`cap * tanh(score / cap)` (Gemma 2, arXiv 2408.00118)."""

    cap: float
    kind: ClassVar[str] = "softcap"

    def __post_init__(self) -> None:
        if not (math.isfinite(self.cap) and self.cap > 0):
            raise ScoreError(f"softcap takes a positive cap, not {self.cap}")
        object.__setattr__(self, "cap", float(self.cap))

    def __str__(self) -> str:
        return f"softcap({_number(self.cap)})"


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """The slopes of the ALiBi paper (arXiv 2108.12409, and its code for head counts that are no power of two)."""
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2.0 ** (-8.0 * (h + 1) / power) for h in range(power)]
    slopes += [2.0 ** (-4.0 * (2 * h + 1) / power) for h in range(heads - power)]
    return tuple(slopes)


@dataclass(frozen=True)
class ALiBi(Score):
    """`-slope[h] * |p - j|`, one slope per query head; without slopes, those of the paper."""

    slopes: tuple[float, ...] | None = None
    kind: ClassVar[str] = "alibi"

    def __post_init__(self) -> None:
        if self.slopes is not None:
            values: Any = self.slopes.tolist() if hasattr(self.slopes, "tolist") else self.slopes
            object.__setattr__(self, "slopes", tuple(float(s) + 0.0 for s in values))

    def __str__(self) -> str:
        return "alibi" if self.slopes is None else f"alibi({','.join(_number(s) for s in self.slopes)})"

    def check(self, extent: Extent) -> None:
        if self.slopes is not None and len(self.slopes) != extent.heads:
            raise ScoreError(
                f"alibi has {len(self.slopes)} slopes but the problem has {extent.heads} query heads; give one per head"
            )

    def slopes_for(self, heads: int) -> tuple[float, ...]:
        """One slope per query head, length `heads`."""
        return alibi_slopes(heads) if self.slopes is None else self.slopes


@dataclass(frozen=True)
class Bias(Score):
    """A dense additive bias that varies over `dims`, a subset of "bhqk", and is broadcast over the others.

    `Bias("hqk")` describes one drawn from N(0, std); `Bias(tensor)` carries a tensor [B|1, H|1, Q|1, K|1].
    """

    dims: str = "hqk"
    std: float = 1.0
    tensor: Tensor | None = field(default=None, compare=False, repr=False)
    kind: ClassVar[str] = "bias"
    gradient: ClassVar[str | None] = "dbias"

    if TYPE_CHECKING:

        def __init__(
            self, dims: str | Tensor = "hqk", std: float = 1.0, tensor: Tensor | None = None
        ) -> None: ...

    def __post_init__(self) -> None:
        if hasattr(self.dims, "shape"):
            tensor: Any = self.dims
            if tensor.ndim != 4:
                raise ScoreError(
                    f"a bias tensor has four dimensions [B|1, H|1, Q|1, K|1], not {tuple(tensor.shape)}"
                )
            object.__setattr__(self, "tensor", tensor)
            sizes = zip("bhqk", tensor.shape, strict=True)
            object.__setattr__(self, "dims", "".join(name for name, size in sizes if size > 1))
        if "".join(c for c in "bhqk" if c in self.dims) != self.dims:
            raise ScoreError(f"bias dims are letters of 'bhqk' in that order, not {self.dims!r}")
        object.__setattr__(self, "std", float(self.std))

    def __str__(self) -> str:
        inside = [self.dims] if self.dims else ["scalar"]
        return f"bias({','.join(inside + ([] if self.std == 1.0 else [_number(self.std)]))})"

    def tensor_shape(self, extent: Extent) -> tuple[int, ...]:
        sizes = {"b": extent.batch, "h": extent.heads, "q": extent.q_len, "k": extent.k_len}
        return tuple(sizes[c] if c in self.dims else 1 for c in "bhqk")

    def check(self, extent: Extent) -> None:
        if self.tensor is not None:
            full = (extent.batch, extent.heads, extent.q_len, extent.k_len)
            if any(size not in (1, whole) for size, whole in zip(self.tensor.shape, full, strict=True)):
                raise ScoreError(f"a bias of shape {tuple(self.tensor.shape)} does not broadcast to {full}")


def _t5_bucket(distance: Tensor, buckets: int, max_distance: int, bidirectional: bool) -> Tensor:
    # T5 (arXiv 1910.10683, section 2.1): half of the buckets are exact, the others grow with the logarithm.
    import torch

    bucket = torch.zeros_like(distance)
    behind = -distance  # from the query back to the key
    if bidirectional:
        buckets //= 2
        bucket = bucket + (behind < 0).long() * buckets
        behind = behind.abs()
    else:
        behind = behind.clamp_min(0)
    exact = buckets // 2
    ratio = torch.log(behind.clamp_min(1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (buckets - exact)).long()).clamp_max(buckets - 1)
    return bucket + torch.where(behind < exact, behind, far)


@dataclass(frozen=True)
class RelativeBias(Score):
    """A learned table read through an index rule: bias[h, i, j] = table[h, index(i, j)].

    Rules: `t5(buckets, max_distance, bidirectional|causal)` over j - p, and `grid(height, width)` (Swin,
    arXiv 2103.14030: the offset of two patches of a height x width window, which must be the whole sequence).
    """

    rule: str
    std: float = 1.0
    tensor: Tensor | None = field(default=None, compare=False, repr=False)
    kind: ClassVar[str] = "relative"
    gradient: ClassVar[str | None] = "dtable"

    def __post_init__(self) -> None:
        name, args = parse_call(self.rule)
        if name == "t5" and len(args) == 3:
            true_words = ("bidirectional", "true", "True", 1)
            if args[2] not in (*true_words, "causal", "false", "False", 0):
                raise ScoreError(f"the third argument of t5 is 'bidirectional' or 'causal', not {args[2]!r}")
            buckets, distance = int(args[0]), int(args[1])
            bidirectional = args[2] in true_words
            exact = (buckets // 2 if bidirectional else buckets) // 2
            if exact < 1 or distance <= exact:
                raise ScoreError(f"{self.rule}: needs more buckets and a larger distance")
            rule = f"t5({buckets},{distance},{'bidirectional' if bidirectional else 'causal'})"
        elif name == "grid" and len(args) == 2 and min(int(args[0]), int(args[1])) >= 1:
            rule = f"grid({int(args[0])},{int(args[1])})"
        else:
            raise ScoreError(
                f"no relative bias rule {self.rule!r}; take t5(buckets,distance,bidirectional) or grid(height,width)"
            )
        object.__setattr__(self, "rule", rule)
        object.__setattr__(self, "std", float(self.std))

    def __str__(self) -> str:
        name, args = parse_call(self.rule)
        extra = [] if self.std == 1.0 else [_number(self.std)]
        return f"relative({','.join([name, *map(str, args), *extra])})"

    @property
    def entries(self) -> int:
        """The number of table entries per head."""
        name, args = parse_call(self.rule)
        return int(args[0]) if name == "t5" else (2 * int(args[0]) - 1) * (2 * int(args[1]) - 1)

    def tensor_shape(self, extent: Extent) -> tuple[int, ...]:
        return (extent.heads, self.entries)

    def check(self, extent: Extent) -> None:
        name, args = parse_call(self.rule)
        if name == "grid":
            tokens = int(args[0]) * int(args[1])
            if not extent.q_len == extent.k_len == tokens:
                raise ScoreError(
                    f"{self.rule} covers {tokens} tokens, but q_len is {extent.q_len} and k_len {extent.k_len}"
                )

    def index(self, extent: Extent) -> Tensor:
        """The table entry that each pair reads: int64 [Q, K], on the CPU."""
        import torch

        name, args = parse_call(self.rule)
        i = torch.arange(extent.q_len)[:, None]
        j = torch.arange(extent.k_len)[None, :]
        if name == "t5":
            p = i + extent.k_len - extent.q_len
            return _t5_bucket(j - p, int(args[0]), int(args[1]), args[2] == "bidirectional")
        height, width = int(args[0]), int(args[1])
        down = i // width - j // width + height - 1
        right = i % width - j % width + width - 1
        return down * (2 * width - 1) + right


@dataclass(frozen=True)
class Sink(Score):
    """One extra logit per head in the softmax's denominator, without a value (gpt-oss; arXiv 2309.17453).

    `Sink()` is drawn from N(0, 1), `Sink(100.0)` is that number for every head, `Sink(tensor)` carries [H].
    """

    value: float | None = None
    tensor: Tensor | None = field(default=None, compare=False, repr=False)
    kind: ClassVar[str] = "sink"
    gradient: ClassVar[str | None] = "dsink"

    if TYPE_CHECKING:

        def __init__(self, value: float | Tensor | None = None, tensor: Tensor | None = None) -> None: ...

    def __post_init__(self) -> None:
        if hasattr(self.value, "shape"):
            object.__setattr__(self, "tensor", self.value)
            object.__setattr__(self, "value", None)
        elif self.value is not None:
            object.__setattr__(self, "value", float(self.value))

    def __str__(self) -> str:
        return "sink" if self.value is None else f"sink({_number(self.value)})"

    def tensor_shape(self, extent: Extent) -> tuple[int, ...]:
        return (extent.heads,)

    def check(self, extent: Extent) -> None:
        if self.tensor is not None and tuple(self.tensor.shape) != (extent.heads,):
            raise ScoreError(
                f"sink logits have shape [{extent.heads}], one per query head, not {tuple(self.tensor.shape)}"
            )


_ORDER = ("softcap", "bias", "relative", "alibi", "sink")


def canonical(scores: Sequence[Score]) -> tuple[Score, ...]:
    """The changes in canonical order; raises ScoreError if a kind occurs twice."""
    for score in scores:
        if not isinstance(score, Score):
            raise ScoreError(f"{score!r} is no score change; take Softcap, ALiBi, Bias, RelativeBias or Sink")
    kinds = [score.kind for score in scores]
    twice = sorted({kind for kind in kinds if kinds.count(kind) > 1})
    if twice:
        raise ScoreError(f"the score change {twice[0]!r} is given twice; give each kind once")
    return tuple(sorted(scores, key=lambda score: _ORDER.index(score.kind)))


def parse_score(text: str) -> Score:
    """Read one score change from its text, e.g. `softcap(50)`, `alibi`, `bias(hqk)`, `relative(t5,32,128,causal)`."""
    name, args = parse_call(text)
    if name == "softcap" and len(args) == 1:
        return Softcap(float(args[0]))
    if name == "alibi":
        flat = args[0] if len(args) == 1 and isinstance(args[0], (list, tuple)) else args
        return ALiBi(tuple(float(a) for a in flat) if flat else None)
    if name == "bias" and len(args) <= 2:
        dims = str(args[0]) if args else "hqk"
        return Bias("" if dims == "scalar" else dims, std=float(args[1]) if args[1:] else 1.0)
    if name == "relative" and len(args) >= 3 and args[0] in ("t5", "grid"):
        parts = 4 if args[0] == "t5" else 3
        rule = f"{args[0]}({','.join(map(str, args[1:parts]))})"
        return RelativeBias(rule, std=float(args[parts]) if args[parts:] else 1.0)
    if name == "sink" and len(args) <= 1:
        return Sink(float(args[0]) if args else None)
    raise ScoreError(
        f"cannot read the score change {text!r}; take softcap(cap), alibi, bias(hqk), sink, "
        "relative(t5,buckets,distance,causal) or relative(grid,height,width)"
    )
