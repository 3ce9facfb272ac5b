"""Whether an attention backend is right, how fast and how big it is, and whether a change made it worse.

Public names are loaded on first use, so importing attnbench costs little beyond torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "attnbench.errors": ("AttnbenchError",),
    "attnbench.problem": (
        "ALiBi",
        "Bias",
        "BlockSparse",
        "Case",
        "Causal",
        "Dilated",
        "Documents",
        "Explicit",
        "Full",
        "GlobalTokens",
        "Padding",
        "PrefixLM",
        "RelativeBias",
        "Sink",
        "SlidingWindow",
        "Softcap",
        "parse_mask",
        "parse_score",
    ),
    "attnbench.backend": ("Backend", "Capabilities", "as_backend", "attention"),
    "attnbench.layer": ("MultiheadAttention", "use_backend"),
    "attnbench.conformance": ("check", "parametrize_with_backends"),
    "attnbench.report": ("load",),
    "attnbench.session": ("backends", "run"),
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

if TYPE_CHECKING:
    from attnbench.backend import Backend, Capabilities, as_backend, attention
    from attnbench.conformance import check, parametrize_with_backends
    from attnbench.errors import AttnbenchError
    from attnbench.layer import MultiheadAttention, use_backend
    from attnbench.problem import (
        ALiBi,
        Bias,
        BlockSparse,
        Case,
        Causal,
        Dilated,
        Documents,
        Explicit,
        Full,
        GlobalTokens,
        Padding,
        PrefixLM,
        RelativeBias,
        Sink,
        SlidingWindow,
        Softcap,
        parse_mask,
        parse_score,
    )
    from attnbench.report import load
    from attnbench.session import backends, run

__all__ = [
    "ALiBi",
    "AttnbenchError",
    "Backend",
    "Bias",
    "BlockSparse",
    "Capabilities",
    "Case",
    "Causal",
    "Dilated",
    "Documents",
    "Explicit",
    "Full",
    "GlobalTokens",
    "MultiheadAttention",
    "Padding",
    "PrefixLM",
    "RelativeBias",
    "Sink",
    "SlidingWindow",
    "Softcap",
    "as_backend",
    "attention",
    "backends",
    "check",
    "load",
    "parametrize_with_backends",
    "parse_mask",
    "parse_score",
    "run",
    "use_backend",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"attnbench has no {name!r}; its public names are {', '.join(__all__)}")
    if _MODULE_OF[name] == "attnbench.conformance":
        from attnbench.waiting import sleep_soon

        sleep_soon()
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
