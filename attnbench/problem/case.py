"""One attention problem as pure data, with its exact work and its memory floor."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import MISSING, dataclass, fields
from functools import cached_property
from typing import Any, Literal

import numpy as np

from attnbench.errors import CaseError
from attnbench.problem.counting import row_chunks
from attnbench.problem.grammar import parse_mask
from attnbench.problem.masks import Extent, Mask
from attnbench.problem.primitives import Full
from attnbench.problem.scores import Score, canonical, parse_score
from attnbench.problem.spans import Ints

DTYPES = {"fp32": 4, "bf16": 2, "fp16": 2}  # name -> bytes per element
LAYOUTS = ("bhsd", "bshd", "qkv_packed")
DIRECTIONS = ("fwd", "fwd_bwd")
NO_MASK = Full()


@dataclass(frozen=True, kw_only=True)
class Case:
    """One problem: q [B, H, Q, D], k [B, Hkv, K, D], v [B, Hkv, K, Dv], mask and score changes.

    Lengths are in tokens and at least 1. `scale` None is 1 / sqrt(head_dim). A case with no allowed pair is
    legal. Raises CaseError (a ValueError) that names the field, and MaskError or ScoreError if the mask or a
    score change does not fit the sizes.
    """

    batch: int = 1
    q_len: int
    k_len: int
    q_heads: int
    kv_heads: int = 0  # 0 in the call: the same as q_heads
    head_dim: int
    v_dim: int = 0  # 0 in the call: the same as head_dim
    dtype: Literal["fp32", "bf16", "fp16"]
    mask: Mask = NO_MASK
    scores: tuple[Score, ...] = ()
    scale: float | None = None
    direction: Literal["fwd", "fwd_bwd"] = "fwd"
    layout: Literal["bhsd", "bshd", "qkv_packed"] = "bhsd"

    def __post_init__(self) -> None:
        object.__setattr__(self, "kv_heads", self.kv_heads or self.q_heads)
        object.__setattr__(self, "v_dim", self.v_dim or self.head_dim)
        for name in ("batch", "q_len", "k_len", "q_heads", "kv_heads", "head_dim", "v_dim"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
                raise CaseError(f"{name} is a whole number of at least 1, not {value!r}")
            object.__setattr__(self, name, int(value))
        if self.q_heads % self.kv_heads:
            raise CaseError(
                f"q_heads {self.q_heads} is no multiple of kv_heads {self.kv_heads}; each key head serves whole groups"
            )
        for name, choices in (("dtype", tuple(DTYPES)), ("direction", DIRECTIONS), ("layout", LAYOUTS)):
            if getattr(self, name) not in choices:
                raise CaseError(f"{name} is one of {', '.join(choices)}, not {getattr(self, name)!r}")
        if self.layout == "qkv_packed" and self.q_len != self.k_len:
            raise CaseError(f"layout qkv_packed needs q_len == k_len, not {self.q_len} and {self.k_len}")
        if self.scale is not None:
            if not math.isfinite(self.scale):
                raise CaseError(f"scale is a finite number, not {self.scale!r}")
            object.__setattr__(self, "scale", float(self.scale))
        if not isinstance(self.mask, Mask):
            raise CaseError(f"mask is a Mask (parse_mask reads a text), not {self.mask!r}")
        scores = (self.scores,) if isinstance(self.scores, Score) else tuple(self.scores)
        object.__setattr__(self, "scores", canonical(scores))
        self.mask.check(self.extent)
        for score in self.scores:
            score.check(self.extent)

    @property
    def extent(self) -> Extent:
        """The sizes that masks and score changes depend on."""
        return Extent(self.batch, self.q_heads, self.q_len, self.k_len)

    @property
    def softmax_scale(self) -> float:
        """The factor on the raw scores."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def group(self) -> int:
        """Query heads that share one key head."""
        return self.q_heads // self.kv_heads

    @property
    def item_bytes(self) -> int:
        return DTYPES[self.dtype]

    @property
    def needs_backward(self) -> bool:
        return self.direction == "fwd_bwd"

    @cached_property
    def id(self) -> str:
        """A name that reads aloud, the pytest id and the key of results; only `[A-Za-z0-9_.:+-]`."""
        heads = f"h{self.q_heads}" + (f":{self.kv_heads}" if self.kv_heads != self.q_heads else "")
        dims = f"d{self.head_dim}" + (f":{self.v_dim}" if self.v_dim != self.head_dim else "")
        parts = [f"b{self.batch}"] if self.batch != 1 else []
        parts += [f"q{self.q_len}", f"k{self.k_len}", heads, dims, self.dtype, self.mask.label]
        parts += [_safe(score.label) for score in self.scores]
        parts += [f"scale{_safe(repr(self.scale))}"] if self.scale is not None else []
        parts += [self.layout] if self.layout != "bhsd" else []
        return "-".join([*parts, self.direction])

    @cached_property
    def pairs(self) -> int:
        """The exact number of allowed (query, key) pairs over batch and query heads."""
        return self.mask.pairs(self.extent)

    def flops(self, direction: Literal["fwd", "bwd"]) -> int:
        """Useful FLOPs of one pass, the same for every backend: 2 (D + Dv) or 2 (3D + 2Dv) per pair."""
        if direction == "fwd":
            return 2 * self.pairs * (self.head_dim + self.v_dim)
        return 2 * self.pairs * (3 * self.head_dim + 2 * self.v_dim)

    @property
    def q_elements(self) -> int:
        return self.batch * self.q_heads * self.q_len * self.head_dim

    @property
    def k_elements(self) -> int:
        return self.batch * self.kv_heads * self.k_len * self.head_dim

    @property
    def v_elements(self) -> int:
        return self.batch * self.kv_heads * self.k_len * self.v_dim

    @property
    def out_elements(self) -> int:
        return self.batch * self.q_heads * self.q_len * self.v_dim

    @property
    def rows(self) -> int:
        """Rows of scores: batch x query heads x q_len."""
        return self.batch * self.q_heads * self.q_len

    @property
    def score_elements(self) -> int:
        """Elements of all tensors of score changes."""
        shapes = [score.tensor_shape(self.extent) for score in self.scores]
        return sum(math.prod(shape) for shape in shapes if shape is not None)

    @property
    def least_peak_bytes(self) -> int:
        """The memory floor above the inputs, in bytes.

        O; with the backward also the float32 LSE and delta, and dq, dk, dv (and the gradients of score
        tensors). dO counts as an input.
        """
        least = self.out_elements * self.item_bytes
        if self.needs_backward:
            gradients = self.q_elements + self.k_elements + self.v_elements + self.score_elements
            least += gradients * self.item_bytes + 2 * self.rows * 4
        return least

    def least_bytes(self, direction: Literal["fwd", "bwd"]) -> int:
        """Bytes that one pass must move with a cold cache: visible keys and values only."""
        visible = self._visible_keys
        keys = visible * (self.head_dim + self.v_dim) * self.item_bytes
        queries = (self.q_elements + self.out_elements + self.score_elements) * self.item_bytes
        if direction == "fwd":
            return queries + keys
        # Read q, k, v, dO, O and the LSE; write dq, dk, dv of every key, visible or not.
        written = (
            self.q_elements + self.k_elements + self.v_elements + self.score_elements
        ) * self.item_bytes
        return queries + keys + self.out_elements * self.item_bytes + self.rows * 4 + written

    @property
    def least_traffic_bytes(self) -> int:
        """Bytes that a cold cache must move for the case's direction."""
        return self.least_bytes("fwd") + (self.least_bytes("bwd") if self.needs_backward else 0)

    @cached_property
    def has_empty_rows(self) -> bool:
        """Whether some query may attend no key."""
        heads = range(self.q_heads) if self.mask.varies_over_heads else range(1)
        for b in self._distinct_batches:
            for h in heads:
                for rows in self._row_chunks:
                    starts, ends = self.mask.spans(self.extent, b, h, rows)
                    if not bool(np.all(np.sum(ends - starts, axis=1) > 0)):
                        return True
        return False

    @cached_property
    def _visible_keys(self) -> int:
        # A key of a key head is read if any query head of the group may attend it.
        varies = self.mask.varies_over_heads
        groups = (
            [range(h, h + self.group) for h in range(0, self.q_heads, self.group)] if varies else [range(1)]
        )
        total = sum(self._keys_seen(b, group) for b in self._distinct_batches for group in groups)
        return total * (self.batch // len(self._distinct_batches)) * (self.kv_heads // len(groups))

    def _keys_seen(self, b: int, heads: range) -> int:
        seen = np.zeros(self.k_len, dtype=bool)
        for h in heads:
            for rows in self._row_chunks:
                starts, ends = self.mask.spans(self.extent, b, h, rows)
                some = ends > starts
                change = np.bincount(starts[some], minlength=self.k_len + 1)
                change -= np.bincount(ends[some], minlength=self.k_len + 1)
                seen |= np.cumsum(change)[:-1] > 0
                if seen.all():
                    return self.k_len
        return int(np.count_nonzero(seen))

    @property
    def _distinct_batches(self) -> range:
        return range(self.batch) if self.mask.varies_over_batch else range(1)

    @property
    def _row_chunks(self) -> Iterator[Ints]:
        return row_chunks(self.extent, self.mask.max_spans(self.extent))

    def to_json(self) -> dict[str, Any]:
        """The case as JSON values; `from_json` reads it back."""
        record = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**record, "mask": str(self.mask), "scores": [str(score) for score in self.scores]}

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Case:
        """Read a case from the output of `to_json`; raises CaseError that names an unknown or missing field."""
        names = {field.name for field in fields(cls)}
        unknown = sorted(set(record) - names)
        if unknown:
            raise CaseError(f"a case has no field {unknown[0]!r}; its fields are {', '.join(sorted(names))}")
        missing = [f.name for f in fields(cls) if f.default is MISSING and f.name not in record]
        if missing:
            raise CaseError(f"not a whole case: it needs {', '.join(missing)}")
        values = dict(record)
        if isinstance(values.get("mask"), str):
            values["mask"] = parse_mask(values["mask"])
        values["scores"] = tuple(
            parse_score(s) if isinstance(s, str) else s for s in values.get("scores", ())
        )
        try:
            return cls(**values)
        except TypeError as error:
            raise CaseError(f"not a whole case: {error}") from error


def _safe(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.:+]", "_", text)
