"""`use_backend` runs the attention of unchanged models on a backend, by exchanging torch's function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

from attnbench.errors import LayerError
from attnbench.layer import transformers_interface
from attnbench.layer.attend import AttentionFunction, attend_with, backend_name
from attnbench.layer.router import ACTIVE, TORCH_SDPA, Routed, Router

OTHERWISE = ("refuse", "torch")


class _DirectCalls(TorchFunctionMode):
    """Routes calls through references to torch's function that were taken before the exchange."""

    def __init__(self, router: Router) -> None:
        super().__init__()
        self.router = router

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        if func is TORCH_SDPA and not self.router.is_inside:
            return self.router(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def use_backend(backend: str | AttentionFunction, *, otherwise: str = "refuse") -> Iterator[Routed]:
    """Reroute every call of torch.nn.functional.scaled_dot_product_attention to a backend, and count them.

    Calls inside torch.nn modules (whose native fast path, which has no such call, is off meanwhile) and through
    references taken earlier are rerouted too. Code compiled earlier by torch.compile is not, nor attention written
    without this function (torch.nn.MultiheadAttention with need_weights=True). A call that the backend refuses
    raises AttnbenchError with the reason; with `otherwise="torch"` torch computes it, and `left_to_torch` counts
    it by reason. If transformers is imported, models with `attn_implementation="attnbench"` run on the backend
    too, softcap and sinks included.

    The exchange holds for the whole process, other threads included. Contexts nest; the inner one counts.
    """
    if otherwise not in OTHERWISE:
        raise LayerError(f"otherwise is {' or '.join(map(repr, OTHERWISE))}, not {otherwise!r}")
    if any(router.is_inside for router in ACTIVE):
        raise LayerError(f"use_backend({backend_name(backend)!r}) inside a backend's own computation")
    router = Router(attend_with(backend), otherwise)
    if "transformers" in sys.modules:
        transformers_interface.register()
    before, fast_path = F.scaled_dot_product_attention, torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    F.scaled_dot_product_attention = router  # type: ignore[assignment]
    ACTIVE.append(router)
    try:
        with _DirectCalls(router):
            yield router.routed
    finally:
        ACTIVE.remove(router)
        F.scaled_dot_product_attention = before
        torch.backends.mha.set_fastpath_enabled(fast_path)
