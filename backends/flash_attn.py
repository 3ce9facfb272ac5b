"""What does FlashAttention-2 (the package flash-attn) give? Bands, key lengths, packed documents, softcap and ALiBi."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import LibraryBackend
from ._lowering_flash import lowered, task_of

REQUIRES = {"flash_attn.flash_attn_interface": "attnbench env create flash_attn"}
ENVIRONMENT = "flash_attn"

backend = LibraryBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(8, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(8, 256, 8),
        masks=frozenset({"full", "causal", "causal(top_left)", "window", "padding", "documents"}),
        scores=frozenset({"softcap", "alibi"}),
        unequal_v_dim=False,
        varlen=True,
        deterministic=False,
        source="https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/flash_attn_interface.py",
    ),
    ENVIRONMENT,
    "_program_torch.py",
    lambda case: task_of(case, lowered(case, second=True), "flash_attn"),
    ("flash_attn.flash_attn_interface",),
    ("flash-attn", "torch"),
    "flash2",
)
