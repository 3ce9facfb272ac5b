"""xFormers' memory_efficient_attention pinned to FlashAttention-3: on Hopper, from the wheels that ship it."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import LibraryBackend
from ._lowering_xformers import SOURCE, lowered, task_of

REQUIRES = {"xformers": "attnbench env create xformers"}
ENVIRONMENT = "xformers"

backend = LibraryBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(9, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(64, 256, 8),
        masks=frozenset({"full", "causal", "causal(top_left)", "window", "padding", "documents"}),
        scores=frozenset(),
        unequal_v_dim=False,
        varlen=True,
        empty_rows="undefined",
        source=SOURCE,
    ),
    ENVIRONMENT,
    "_program_torch.py",
    lambda case: task_of(case, lowered(case, "flash3"), "flash3"),
    ("xformers",),
    ("xformers", "torch"),
    "flash3",
)
