"""Calls xFormers' memory_efficient_attention with one operator pinned. Imports no attnbench."""

from typing import Any

import torch
from xformers.ops import fmha


def bias_of(name: str, numbers: dict[str, Any], device: Any) -> Any:
    """The bias object of the class with this name, from the numbers of the lowering."""
    classes = fmha.attn_bias
    make = getattr(classes, name)
    window = numbers.get("window")
    ends = {key: numbers[key] for key in ("window_left", "window_right") if key in numbers}
    if "q_lengths" not in numbers:
        if window is not None:
            return make(window)
        return make(**ends)
    queries, keys = list(numbers["q_lengths"]), list(numbers["k_lengths"])
    if "kv_padding" in numbers:
        base = classes.BlockDiagonalPaddedKeysMask.from_seqlens(
            queries, numbers["kv_padding"], keys, device=device
        )
    else:
        base = classes.BlockDiagonalMask.from_seqlens(queries, keys, device=device)
    further = {} if window is None else {"_window_size": window}
    return make(q_seqinfo=base.q_seqinfo, k_seqinfo=base.k_seqinfo, **further, **ends)


def build(task: dict[str, Any], fixed: dict[str, torch.Tensor], device: str) -> tuple[Any, str]:
    """The call of a case, and the names of the operators that it is pinned to."""
    case = task["case"]
    operator = getattr(fmha, task["operator"])
    pinned = (operator.FwOp, operator.BwOp if case["direction"] == "fwd_bwd" else None)
    group = case["q_heads"] // case["kv_heads"]
    packed = "cu_seqlens_q" in fixed
    dense = task["bias"] == "Tensor"
    bias = None if dense or not task["bias"] else bias_of(task["bias"], task["numbers"], torch.device(device))

    def shaped(x: torch.Tensor) -> torch.Tensor:
        # [T, H, D] -> [1, T, H, D]; grouped heads -> [B, S, Hkv, group, D], keys without a copy.
        x = x.unsqueeze(0) if packed else x
        if group == 1:
            return x
        if x.shape[2] == case["q_heads"]:
            return x.unflatten(2, (case["kv_heads"], group))
        return x.unsqueeze(3).expand(-1, -1, -1, group, -1)

    def attend(
        q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, changes: dict[str, Any]
    ) -> tuple[Any, None]:
        mask = dense_bias(q, case, group, fixed, changes) if dense else bias
        out = fmha.memory_efficient_attention(
            shaped(q), shaped(k), shaped(v), attn_bias=mask, p=0.0, scale=case["scale"], op=pinned
        )
        out = out if group == 1 else out.flatten(2, 3)
        return (out.squeeze(0) if packed else out), None

    return attend, " + ".join(op.NAME for op in pinned if op is not None) + f" ({_kernels(task['operator'])})"


def dense_bias(
    q: torch.Tensor, case: dict[str, Any], group: int, fixed: dict[str, torch.Tensor], changes: dict[str, Any]
) -> torch.Tensor:
    """All biases added up, -inf where masked: [B, H, Q, K] in q's dtype, or [B, Hkv, group, Q, K]."""
    shape = (case["batch"], case["q_heads"], case["q_len"], case["k_len"])
    whole = torch.zeros((1, 1, 1, 1), dtype=q.dtype, device=q.device)
    if "alibi_slopes" in fixed:
        p = torch.arange(shape[2], device=q.device)[:, None] + shape[3] - shape[2]
        distance = (p - torch.arange(shape[3], device=q.device)).abs()  # [Q, K]
        whole = whole - (fixed["alibi_slopes"][:, None, None] * distance)[None].to(q.dtype)
    if "bias" in changes:
        whole = whole + changes["bias"]
    if "relative" in changes:
        whole = whole + changes["relative"][:, fixed["relative_index"].long()][None]
    if "mask" in fixed:
        whole = whole.expand(torch.broadcast_shapes(whole.shape, fixed["mask"].shape))
        whole = whole.masked_fill(~fixed["mask"], -torch.inf)
    whole = whole.expand(shape)
    return whole if group == 1 else whole.unflatten(1, (case["kv_heads"], group))


def _kernels(operator: str) -> str:
    return {"cutlass": "_efficient_attention_forward", "flash": "_flash_attention_forward"}.get(
        operator, "flash3"
    )
