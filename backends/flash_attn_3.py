"""FlashAttention-3 (the folder hopper/): bands, key lengths, packed documents and softcap, on Hopper."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import LibraryBackend
from ._lowering_flash import lowered, task_of

REQUIRES = {"flash_attn_interface": "attnbench env create flash_attn_3"}
ENVIRONMENT = "flash_attn_3"

backend = LibraryBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(9, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(8, 256, 8),
        masks=frozenset({"full", "causal", "causal(top_left)", "window", "padding", "documents"}),
        scores=frozenset({"softcap"}),
        unequal_v_dim=False,
        varlen=True,
        source="https://github.com/Dao-AILab/flash-attention/blob/main/hopper/flash_attn_interface.py",
    ),
    ENVIRONMENT,
    "_program_torch.py",
    lambda case: task_of(case, lowered(case), "flash_attn_3"),
    ("flash_attn_interface",),
    ("flash_attn_3", "torch"),
    "flash3",
)
