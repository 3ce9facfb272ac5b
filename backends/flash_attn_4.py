"""FlashAttention-4 (flash_attn.cute): bands, key lengths, packed documents, softcap and sinks."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import LibraryBackend
from ._lowering_flash import lowered, task_of

REQUIRES = {"flash_attn.cute": "attnbench env create flash_attn_4"}
ENVIRONMENT = "flash_attn_4"

backend = LibraryBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(9, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(8, 256, 8),
        masks=frozenset({"full", "causal", "causal(top_left)", "window", "padding", "documents"}),
        scores=frozenset({"softcap", "sink"}),
        unequal_v_dim=True,
        varlen=True,
        source="https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/cute/interface.py",
    ),
    ENVIRONMENT,
    "_program_torch.py",
    lambda case: task_of(case, lowered(case, unlimited=None), "flash_attn_4"),
    ("flash_attn.cute",),
    ("flash-attn-4", "torch"),
    "flash4",
)
