"""torch's varlen_attn: packed sequences on torch's own FlashAttention-2, GPU only."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import LibraryBackend
from ._lowering_flash import lowered_varlen, task_of

REQUIRES = {"torch.nn.attention.varlen": "pip install 'torch>=2.10'"}

backend = LibraryBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(8, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(8, 256, 8),
        masks=frozenset({"full", "causal", "causal(top_left)", "window", "padding", "documents"}),
        scores=frozenset(),
        unequal_v_dim=False,
        varlen=True,
        source="https://docs.pytorch.org/docs/stable/nn.attention.varlen.html",
    ),
    "",
    "_program_torch.py",
    lambda case: task_of(case, lowered_varlen(case), "torch_varlen", "_call_varlen.py"),
    ("torch.nn.attention.varlen",),
    ("torch",),
    "flash2",
)
