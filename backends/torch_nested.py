"""torch's SDPA on nested (jagged) tensors: documents and key lengths, each sequence attended whole."""

from __future__ import annotations

from typing import Any

from attnbench.backend import Capabilities
from attnbench.problem import Case

from ._library import LibraryBackend
from ._lowering_flash import FlashCall, lowered_varlen, task_of

REQUIRES = {"torch.nested": "pip install 'torch>=2.6'"}


def request(case: Case) -> tuple[dict[str, Any], dict[str, Any]]:
    """As varlen_attn's, but without bands: torch refuses is_causal on jagged tensors."""
    call: FlashCall = lowered_varlen(case)
    if call.causal or call.window_size != (-1, -1):
        raise NotImplementedError(
            f"has no {case.mask}: SDPA takes no mask and no is_causal on jagged tensors"
        )
    return task_of(case, call, "torch_nested", "_call_nested.py")


backend = LibraryBackend(
    Capabilities(
        masks=frozenset({"full", "padding", "documents"}),
        scores=frozenset(),
        gqa=False,
        varlen=True,
        contract="dense",
        empty_rows="undefined",
        source="https://docs.pytorch.org/docs/stable/nested.html",
    ),
    "",
    "_program_torch.py",
    request,
    ("torch.nested",),
    ("torch",),
)
