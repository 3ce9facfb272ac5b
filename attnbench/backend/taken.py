"""What a loaded backend takes on a device, found by asking it about plain cases."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from attnbench.backend.interface import Backend
from attnbench.problem import MASK_KINDS, Case, Causal, Extent, example_of

TOKENS, HEADS, HEAD_DIM = 128, 4, 64
DTYPES = ("fp32", "bf16", "fp16")


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
    extent = Extent(1, HEADS, TOKENS, TOKENS)
    return Taken(
        tuple(dtypes),
        tuple(kind for kind in sorted(MASK_KINDS) if takes(replace(plain, mask=example_of(kind, extent)))),
        takes(replace(plain, direction="fwd_bwd")),
        takes(replace(plain, kv_heads=1)),
    )
