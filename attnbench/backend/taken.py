"""What a loaded backend takes on a device, found by asking it about plain cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from attnbench.backend.interface import Backend
from attnbench.problem import (
    BlockSparse,
    Case,
    Causal,
    Dilated,
    Documents,
    Explicit,
    Full,
    GlobalTokens,
    Mask,
    Padding,
    PrefixLM,
    SlidingWindow,
)

TOKENS, HEADS, HEAD_DIM = 128, 4, 64
DTYPES = ("fp32", "bf16", "fp16")
MASKS: dict[str, Mask] = {
    "full": Full(),
    "causal": Causal(),
    "causal(top_left)": Causal("top_left"),
    "window": SlidingWindow(31, 31),
    "padding": Padding([TOKENS - 28]),
    "documents": Documents([TOKENS // 2] * 2),
    "prefix": PrefixLM(32),
    "global": GlobalTokens(2),
    "block_sparse": BlockSparse([[1, 1], [1, 1]], TOKENS // 2),
    "dilated": Dilated(2),
    "explicit": Explicit([[[[True] * TOKENS] * TOKENS]]),
}


@dataclass(frozen=True)
class Taken:
    """What a backend takes on one device: dtypes, kinds of masks, the backward, shared key heads."""

    dtypes: tuple[str, ...]
    masks: tuple[str, ...]
    backward: bool
    gqa: bool


def taken(backend: Backend, device: str) -> Taken | None:
    """What it takes on "cpu" or "cuda"; None if it takes no plain case there."""
    smallest, largest, step = backend.capabilities.head_dims
    fitting = [dim for dim in range(smallest, min(largest, HEAD_DIM) + 1) if dim % step == 0]
    sizes: dict[str, Any] = {"q_len": TOKENS, "k_len": TOKENS, "q_heads": HEADS}
    sizes["head_dim"] = max(fitting, default=smallest)

    def takes(case: Case) -> bool:
        return backend.refuses(case, device) is None

    dtypes = [
        dtype
        for dtype in DTYPES
        if takes(Case(**sizes, dtype=dtype)) or takes(Case(**sizes, dtype=dtype, mask=Causal()))  # type: ignore[arg-type]
    ]
    if not dtypes:
        return None
    plain = Case(**sizes, dtype=dtypes[-1])  # type: ignore[arg-type]
    plain = plain if takes(plain) else replace(plain, mask=Causal())
    return Taken(
        tuple(dtypes),
        tuple(kind for kind, mask in MASKS.items() if takes(replace(plain, mask=mask))),
        takes(replace(plain, direction="fwd_bwd")),
        takes(replace(plain, kv_heads=1)),
    )
