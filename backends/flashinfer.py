"""FlashInfer's ragged prefill, forward only: packed sequences, windows, softcap, any mask as bits."""

from __future__ import annotations

from attnbench.backend import Capabilities

from ._library import LibraryBackend
from ._lowering_flashinfer import request

REQUIRES = {"flashinfer.prefill": "attnbench env create flashinfer"}
ENVIRONMENT = "flashinfer"

backend = LibraryBackend(
    Capabilities(
        devices=frozenset({"cuda"}),
        architectures=(8, 0),
        dtypes=frozenset({"bf16", "fp16"}),
        head_dims=(64, 256, 64),
        scores=frozenset({"softcap"}),
        unequal_v_dim=False,
        varlen=True,
        backward=False,
        empty_rows="undefined",
        source="https://docs.flashinfer.ai/api/prefill.html",
    ),
    ENVIRONMENT,
    "_program_torch.py",
    request,
    ("flashinfer.prefill",),
    ("flashinfer-python", "torch"),
    "flashinfer",
)
