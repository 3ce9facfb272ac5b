"""Calls FlashInfer's ragged prefill: one plan for the sequences, then runs. Imports no attnbench."""

from typing import Any

import torch

WORKSPACE_BYTES = 128 << 20  # what its documentation recommends


def build(task: dict[str, Any], fixed: dict[str, torch.Tensor], device: str) -> tuple[Any, str]:
    """The call of a case; planning reads the lengths on the host, once."""
    import flashinfer

    case = task["case"]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[case["dtype"]]
    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device=device)
    wrapper = flashinfer.BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD")
    wrapper.plan(
        fixed["cu_seqlens_q"],
        fixed["cu_seqlens_k"],
        case["q_heads"],
        case["kv_heads"],
        case["head_dim"],
        head_dim_vo=case["v_dim"],
        custom_mask=fixed.get("custom_mask"),
        causal=task["causal"],
        window_left=task["window_left"],
        logits_soft_cap=task["softcap"] or None,
        sm_scale=case["scale"],
        q_data_type=dtype,
    )

    def attend(q: Any, k: Any, v: Any, changes: dict[str, Any]) -> tuple[Any, None]:
        # Its LSE is in base 2 and [T, H]: returning it would put a conversion on the clock.
        return wrapper.run(q, k, v), None

    return attend, "flashinfer.BatchPrefillWithRaggedKVCacheWrapper.run"
