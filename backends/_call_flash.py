"""Calls FlashAttention 2, 3 or 4 with the same task, under each library's own names. Imports no attnbench."""

import importlib
from typing import Any

import torch

# Library -> the module of its functions, and the keywords that make them return the LSE.
LIBRARIES: dict[str, tuple[str, dict[str, Any]]] = {
    "flash_attn": ("flash_attn", {"return_attn_probs": True}),
    "flash_attn_3": ("flash_attn_interface", {"return_attn_probs": True}),
    "flash_attn_4": ("flash_attn.cute", {"return_lse": True}),
}


def build(task: dict[str, Any], fixed: dict[str, torch.Tensor], device: str) -> tuple[Any, str]:
    """The call of a case, and the name of the library's function."""
    module, keywords = LIBRARIES[task["library"]]
    library = importlib.import_module(module)
    packed = "cu_seqlens_q" in fixed
    function = getattr(library, "flash_attn_varlen_func" if packed else "flash_attn_func")
    options = {
        "softmax_scale": task["case"]["scale"],
        "causal": task["causal"],
        "window_size": tuple(task["window_size"]),
        **keywords,
    }
    if task["softcap"]:
        options["softcap"] = task["softcap"]
    if task["deterministic"]:
        options["deterministic"] = True
    if "alibi_slopes" in fixed:
        options["alibi_slopes"] = fixed["alibi_slopes"]
    if packed:
        longest_q, longest_k = task["max_seqlens"]
        options |= {"cu_seqlens_q": fixed["cu_seqlens_q"], "cu_seqlens_k": fixed["cu_seqlens_k"]}
        options |= {"max_seqlen_q": longest_q, "max_seqlen_k": longest_k}

    def attend(q: Any, k: Any, v: Any, changes: dict[str, Any]) -> tuple[Any, Any]:
        sink = {"learnable_sink": changes["sink"]} if "sink" in changes else {}
        result = function(q, k, v, **options, **sink)
        out, lse = result[:2] if isinstance(result, tuple) else (result, None)
        return out, lse if task["lse"] else None

    return attend, f"{module}.{function.__name__}"
