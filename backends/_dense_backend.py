"""An eager backend is one function, `attend`, on dense tensors; DenseBackend prepares everything else."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from attnbench.backend import AutogradPrepared, Backend, Prepared
from attnbench.problem import Case, Inputs, Score

from ._dense import DenseScores, allowed, sink_of, softcap_of, softmax_with_sink


@dataclass(frozen=True, eq=False)
class DenseCase:
    """One call of `attend`, beside q, k and v: what the case does to the scores, as dense tensors.

    allowed  bool [B|1, H|1, Q, K], True where a query may attend a key; None: every key
    keep     [B, H, Q, K], by which dropout multiplies the weights; None: no dropout
    fixed    what the backend's own `fixed` returns
    """

    scale: float  # 1 / sqrt(D) unless the case has another
    group: int  # query heads per key head
    scores: tuple[Score, ...]
    dense: DenseScores
    allowed: Tensor | None
    keep: Tensor | None = None
    fixed: Any = None

    @cached_property
    def bias(self) -> Tensor | None:
        """All biases added up: [B|1, H|1, Q|1, K|1], or None."""
        return self.dense.bias(self.scores)

    @property
    def softcap(self) -> float | None:
        """The cap, or None."""
        return softcap_of(self.scores)

    @property
    def sink(self) -> Tensor | None:
        """The sink logits [H], or None."""
        return sink_of(self.scores)

    def changed(self, scores: Tensor, h: int | None = None) -> Tensor:
        """Softcap, then biases, on the scaled products: [B, H, Q, K], or [B, 1, Q, K] of head h."""
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        bias = _of_head(self.bias, h)
        return scores if bias is None else scores + bias

    def softmax(self, scores: Tensor, h: int | None = None) -> Tensor:
        """The weights of the allowed keys, in the shape of `scores`; the sink takes its share."""
        sink = self.sink if h is None or self.sink is None else self.sink[h : h + 1]
        return softmax_with_sink(scores, _of_head(self.allowed, h), sink)

    def dropped(self, weights: Tensor, h: int | None = None) -> Tensor:
        """The weights after dropout."""
        return weights if self.keep is None else weights * _of_head(self.keep, h)


def _of_head(x: Tensor | None, h: int | None) -> Any:
    """Head h of [B|1, H|1, Q|1, K|1] as a dimension of size 1; x itself if it has no head of its own."""
    return x if x is None or h is None or x.shape[1] == 1 else x[:, h : h + 1]


class DenseBackend(Backend):
    """A subclass declares `capabilities`, names what runs in `kernel`, and writes `attend`."""

    kernel: str
    has_dropout = False  # True: `attend` calls `case.dropped`

    @abstractmethod
    def attend(self, q: Tensor, k: Tensor, v: Tensor, case: DenseCase) -> Tensor:
        """The output [B, H, Q, Dv] of q [B, H, Q, D], k [B, Hkv, K, D], v [B, Hkv, K, Dv]; torch differentiates it."""

    def fixed(self, case: Case, inputs: Inputs) -> Any:
        """Anything else that `attend` needs and that the case determines: made off the clock, read as `case.fixed`."""
        return None

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return self._prepared(case, inputs, None)

    def prepare_with_dropout(self, case: Case, inputs: Inputs, keep: Tensor) -> Prepared:
        if not self.has_dropout:
            return super().prepare_with_dropout(case, inputs, keep)
        return self._prepared(case, inputs, keep)

    def _prepared(self, case: Case, inputs: Inputs, keep: Tensor | None) -> Prepared:
        def compute(q: Tensor, k: Tensor, v: Tensor, scores: tuple[Score, ...]) -> Tensor:
            called = DenseCase(case.softmax_scale, case.group, scores, dense, mask, keep, fixed)
            return self.attend(q, k, v, called)

        fixed = self.fixed(case, inputs)
        prepared = AutogradPrepared(case, inputs, compute, self.kernel, reusable=True)
        with prepared.step("mask"):
            mask, dense = allowed(case, inputs.device), DenseScores(case, inputs.device, inputs.q.dtype)
        return prepared
