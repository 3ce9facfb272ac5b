"""Calls scaled_dot_product_attention on nested (jagged) tensors of packed sequences. Imports no attnbench."""

from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel


def build(task: dict[str, Any], fixed: dict[str, torch.Tensor], device: str) -> tuple[Any, str]:
    """The call of a case, pinned to MATH: the one kernel that takes jagged tensors on every device."""
    ends_q, ends_k = fixed["cu_seqlens_q"].long(), fixed["cu_seqlens_k"].long()
    scale = task["case"]["scale"]

    def nested(x: Any, ends: Any) -> Any:
        # [T, H, D] -> [sequences, H, tokens of each, D]; tokens must be contiguous ("bshd" inputs need no copy).
        return torch.nested.nested_tensor_from_jagged(x.contiguous(), ends).transpose(1, 2)

    def attend(q: Any, k: Any, v: Any, changes: dict[str, Any]) -> tuple[Any, None]:
        with sdpa_kernel([SDPBackend.MATH]):
            out = F.scaled_dot_product_attention(
                nested(q, ends_q), nested(k, ends_k), nested(v, ends_k), scale=scale
            )
        return out.transpose(1, 2).contiguous().values(), None

    return attend, "scaled_dot_product_attention on jagged tensors, MATH"
