"""FlashAttention-2 (the package flash-attn): what it takes, with its ordinary or its deterministic backward."""

from __future__ import annotations

from attnbench.backend import REPEATABLE, Capabilities

from ._library import LibraryBackend
from ._lowering_flash import lowered, task_of


def flash_attn_2(environment: str, deterministic: bool) -> LibraryBackend:
    """The backend; a deterministic backward gives gradients that repeat bit for bit, and takes longer."""
    return LibraryBackend(
        Capabilities(
            devices=frozenset({"cuda"}),
            architectures=(8, 0),
            dtypes=frozenset({"bf16", "fp16"}),
            head_dims=(8, 256, 8),
            masks=frozenset({"full", "causal", "causal(top_left)", "window", "padding", "documents"}),
            scores=frozenset({"softcap", "alibi"}),
            unequal_v_dim=False,
            varlen=True,
            # "The forward pass is always deterministic", says the source.
            claims=REPEATABLE if deterministic else frozenset({"bitwise_repeatable_forward"}),
            source="https://github.com/Dao-AILab/flash-attention/blob/main/flash_attn/flash_attn_interface.py",
        ),
        environment,
        "_program_torch.py",
        lambda case: task_of(case, lowered(case, second=True), "flash_attn", deterministic=deterministic),
        ("flash_attn.flash_attn_interface",),
        ("flash-attn", "torch"),
        "flash2",
    )
