"""Calls torch's varlen_attn on packed sequences, with a window. Imports no attnbench."""

import inspect
from typing import Any

import torch


def build(task: dict[str, Any], fixed: dict[str, torch.Tensor], device: str) -> tuple[Any, str]:
    """The call of a case; NotImplementedError if this version of torch lacks an argument that it needs."""
    from torch.nn.attention import varlen

    takes = inspect.signature(varlen.varlen_attn).parameters
    case, window = task["case"], tuple(task["window_size"])
    options: dict[str, Any] = {}
    if "window_size" in takes:
        options["window_size"] = (window[0], 0) if task["causal"] else window
    elif window == (-1, -1) and "is_causal" in takes:
        options["is_causal"] = task["causal"]
    else:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} takes no window")
    if "scale" in takes:
        options["scale"] = case["scale"]
    elif case["scale"] != case["head_dim"] ** -0.5:
        raise NotImplementedError(f"varlen_attn of torch {torch.__version__} takes no scale")
    if case["q_heads"] != case["kv_heads"]:
        if "enable_gqa" not in takes:
            raise NotImplementedError(f"varlen_attn of torch {torch.__version__} takes no grouped heads")
        options["enable_gqa"] = True
    longest_q, longest_k = task["max_seqlens"]
    packed = (fixed["cu_seqlens_q"], fixed["cu_seqlens_k"], longest_q, longest_k)

    def attend(q: Any, k: Any, v: Any, changes: dict[str, Any]) -> tuple[Any, None]:
        return varlen.varlen_attn(q, k, v, *packed, **options), None

    return attend, "torch.nn.attention.varlen.varlen_attn (_flash_attention_forward)"
