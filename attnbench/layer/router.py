"""A router takes calls of torch's scaled_dot_product_attention to one backend and counts them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnbench.errors import AttnbenchError, LayerError
from attnbench.layer.attend import Attend, AttendFunction, refusal_reason
from attnbench.layer.sdpa_mask import MaskReader
from attnbench.problem import Causal, Full, Mask, Score

TORCH_SDPA = F.scaled_dot_product_attention  # torch's own, whatever stands in its place later


@dataclass
class Routed:
    """The calls of a context: `count` rerouted, by kind, and those left to torch, by reason."""

    backend: str
    count: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    left_to_torch: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        lines = [f"{self.count} calls rerouted to {self.backend}"]
        lines += [f"  {count} x {kind}" for kind, count in self.kinds.most_common()]
        left = sum(self.left_to_torch.values())
        lines += [f"{left} calls left to torch"] if left else []
        lines += [f"  {count} x {reason}" for reason, count in self.left_to_torch.most_common()]
        return "\n".join(lines)


class Router:
    """Runs calls of scaled_dot_product_attention, with torch's arguments, on one backend."""

    def __init__(self, attend: Attend | AttendFunction, otherwise: str) -> None:
        self.attend, self.otherwise = attend, otherwise
        self.routed = Routed(attend.name)
        self.read = MaskReader()
        self._inside = threading.local()

    @property
    def is_inside(self) -> bool:
        """Whether the backend itself is calling torch's function, which then is torch's own."""
        return getattr(self._inside, "now", False)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """torch.nn.functional.scaled_dot_product_attention on the backend."""
        options: dict[str, Any] = {"attn_mask": attn_mask, "dropout_p": dropout_p, "is_causal": is_causal}
        options |= {"scale": scale, "enable_gqa": enable_gqa}
        if self.is_inside:
            return TORCH_SDPA(query, key, value, **options)
        try:
            return self._on_backend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        except AttnbenchError as error:
            reason = refusal_reason(error)
            if self.otherwise == "refuse":
                shapes = ", ".join(str(list(x.shape)) for x in (query, key, value))
                raise AttnbenchError(
                    f"{self.attend.name} refuses a call of scaled_dot_product_attention on {shapes}: {reason}; "
                    "use_backend(..., otherwise='torch') leaves such calls to torch and counts them"
                ) from error
            self.routed.left_to_torch[reason] += 1
        with self._as_inside():
            return TORCH_SDPA(query, key, value, **options)

    @contextmanager
    def _as_inside(self) -> Iterator[None]:
        self._inside.now = True
        try:
            yield
        finally:
            self._inside.now = False

    def _on_backend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        dropout_p: float,
        is_causal: bool,
        scale: float | None,
        enable_gqa: bool,
    ) -> Tensor:
        if attn_mask is not None and is_causal:
            raise LayerError("torch takes a mask or is_causal, not both")
        q, k, v = (_four_dimensions(x) for x in (query, key, value))
        if q.shape[1] != k.shape[1] and not enable_gqa:
            raise LayerError(f"{q.shape[1]} query heads, {k.shape[1]} key heads, and enable_gqa is off")
        mask: Mask = Causal("top_left") if is_causal else Full()
        scores: tuple[Score, ...] = ()
        if attn_mask is not None:
            mask, scores = self.read(attn_mask, q, k)
        out = self.call(q, k, v, mask=mask, scores=scores, scale=scale, keep=self.keep(q, k, dropout_p))
        return out.reshape(*query.shape[:-1], value.shape[-1])

    def keep(self, q: Tensor, k: Tensor, dropout: float) -> Tensor | None:
        """The factors of dropout on the weights, [B, H, Q, K]; None without dropout."""
        if dropout <= 0:
            return None
        drawn = torch.empty(*q.shape[:3], k.shape[2], dtype=q.dtype, device=q.device)
        return drawn.bernoulli_(1 - dropout).div_(1 - dropout)

    def call(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Mask,
        scores: Sequence[Score],
        scale: float | None,
        keep: Tensor | None,
    ) -> Tensor:
        """The backend's answer, counted once it is there."""
        with self._as_inside():
            out = self.attend(q, k, v, mask=mask, scores=tuple(scores), scale=scale, keep=keep)
        self.routed.count += 1
        self.routed.kinds[_kind(q, k, mask, scores, keep)] += 1
        return out


def _kind(q: Tensor, k: Tensor, mask: Mask, scores: Sequence[Score], keep: Tensor | None) -> str:
    words = [
        f"q {q.shape[2]}, k {k.shape[2]}",
        f"heads {q.shape[1]}:{k.shape[1]}",
        " & ".join(sorted(mask.kinds)),
    ]
    words += sorted(score.kind for score in scores) + (["dropout"] if keep is not None else [])
    return ", ".join(words)


def _four_dimensions(x: Tensor) -> Tensor:
    if x.ndim == 4:
        return x
    if x.ndim == 3:
        return x.unsqueeze(1)  # [B, S, D] is one head
    raise LayerError(f"takes tensors of 3 or 4 dimensions, not {x.ndim}")


ACTIVE: list[Router] = []  # the routers of the `use_backend` contexts that are entered, the inner one last
