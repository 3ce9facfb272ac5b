"""Call one backend many times: what depends on the case alone is prepared once and kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from attnbench.backend import Prepared
from attnbench.backend.attention import called, case_of
from attnbench.backend.registry import resolve
from attnbench.errors import AttnbenchError
from attnbench.problem import Case, Full, Inputs, Mask, Score

CASES_KEPT = 16  # a model meets a few shapes at a time; each kept case holds its lowered mask

AttentionFunction = Callable[..., Tensor]


class Attend:
    """One backend under many calls, differentiable: `attend(q, k, v, mask=..., scale=...) -> [B, H, Q, Dv]`.

    The backend is resolved once. A case (shapes, dtype, device, mask, scale, whether gradients are wanted) is
    checked and prepared at its first call. Later calls of the CASES_KEPT latest cases go straight to the kernel if
    the backend can run on other tensors (`Prepared.on`); else they lower the mask again. Raises AttnbenchError with
    the backend's reason if it refuses a case.
    """

    def __init__(self, name: str) -> None:
        self.backend = resolve(name)
        self.name = name
        self.prepared = 0  # number of preparations
        self._kept: OrderedDict[Hashable, tuple[Case, Prepared | None]] = OrderedDict()

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Mask = Full(),
        scores: tuple[Score, ...] = (),
        scale: float | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Attention of q [B, H, Q, D], k [B, Hkv, K, D], v [B, Hkv, K, Dv]; `keep` multiplies the weights."""
        wants = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
        key = (q.shape, k.shape, v.shape, q.dtype, k.dtype, v.dtype, q.device, mask, scale, wants)
        kept = None if scores else self._kept.get(key)
        if kept is None:
            case = case_of(q, k, v, mask=mask, scores=scores, scale=scale)
            refusal = self.backend.refuses(case, q.device.type)
            if refusal is not None:
                raise AttnbenchError(f"{self.name} refuses this case: {refusal.reason}")
        else:
            case = kept[0]
            self._kept.move_to_end(key)
        if keep is None and kept is not None and kept[1] is not None:
            again = kept[1].on(q, k, v)
            if again is not None:
                return called(again, case, q, k, v)
        inputs = Inputs(case, q, k, v, None, case.scores)
        try:
            if keep is not None:
                prepared = self.backend.prepare_with_dropout(case, inputs, keep)
            else:
                prepared = self.backend.prepare(case, inputs)
                self.prepared += 1
                if not scores:
                    self._remember(key, case, prepared)
            return called(prepared, case, q, k, v)
        except NotImplementedError as reason:
            raise AttnbenchError(f"{self.name} refuses this case: {reason}") from reason

    def _remember(self, key: Hashable, case: Case, prepared: Prepared) -> None:
        # On empty tensors, so that the lowered mask is kept but not the caller's activations.
        empty = torch.empty(0)
        self._kept[key] = (case, prepared.on(empty, empty, empty))
        if len(self._kept) > CASES_KEPT:
            self._kept.popitem(last=False)


class AttendFunction:
    """A plain function as it is: no case, no checks, any dtype, gradients by autograd."""

    def __init__(self, fn: AttentionFunction) -> None:
        self.fn = fn
        self.name = getattr(fn, "__name__", type(fn).__name__)

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        mask: Mask = Full(),
        scores: tuple[Score, ...] = (),
        scale: float | None = None,
        keep: Tensor | None = None,
    ) -> Tensor:
        if keep is not None:
            raise AttnbenchError(f"{self.name} refuses this case: a function has no dropout on the weights")
        try:
            scale = q.shape[-1] ** -0.5 if scale is None else scale
            return self.fn(q, k, v, mask=mask, scores=scores, scale=scale)
        except NotImplementedError as reason:
            raise AttnbenchError(f"{self.name} refuses this case: {reason}") from reason


@lru_cache(maxsize=32)
def attend_with(backend: str | AttentionFunction) -> Attend | AttendFunction:
    """The one Attend of a backend in this process, so that all layers of a model share prepared cases."""
    return Attend(backend) if isinstance(backend, str) else AttendFunction(backend)


def forget() -> None:
    """Drop every prepared case, as when a model is deleted."""
    attend_with.cache_clear()


def refusal_reason(error: AttnbenchError) -> str:
    """The backend's own words in a refusal."""
    return str(error).split(" refuses this case: ", 1)[-1]


def backend_name(backend: Any) -> str:
    """The name of a backend that is a name or a function."""
    return backend if isinstance(backend, str) else getattr(backend, "__name__", type(backend).__name__)
