"""xFormers' memory_efficient_attention pinned to its CUTLASS operator (PyTorch's own kernel)."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import LibraryBackend
from ._lowering_xformers import SOURCE, lowered, task_of

REQUIRES = {"xformers": "attnbench env create xformers"}
ENVIRONMENT = "xformers"

backend = LibraryBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        head_dims=(8, 65536, 8),
        scores=frozenset({"alibi", "bias", "relative"}),
        varlen=True,
        empty_rows="undefined",
        source=SOURCE,
    ),
    ENVIRONMENT,
    "_program_torch.py",
    lambda case: task_of(case, lowered(case, "cutlass"), "cutlass"),
    ("xformers",),
    ("xformers", "torch"),
    "cutlass",
)
