"""What does FlashAttention-2 give with its deterministic backward? The same, with gradients that repeat bit for bit."""

from __future__ import annotations

from dataclasses import replace

from ._library import LibraryBackend
from ._lowering_flash import lowered, task_of
from .flash_attn import backend as flash_attn

REQUIRES = {"flash_attn.flash_attn_interface": "attnbench env create flash_attn"}
ENVIRONMENT = "flash_attn"

backend = LibraryBackend(
    replace(flash_attn.capabilities, deterministic=True),
    ENVIRONMENT,
    "_program_torch.py",
    lambda case: task_of(case, lowered(case, second=True), "flash_attn", deterministic=True),
    ("flash_attn.flash_attn_interface",),
    ("flash-attn", "torch"),
    "flash2",
)
