"""Models of transformers run on a backend with `attn_implementation="attnbench"` under `use_backend`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.errors import LayerError
from attnbench.layer.router import ACTIVE
from attnbench.problem import Causal, Full, Mask, Score, Sink, Softcap

IMPLEMENTATION = "attnbench"


def register() -> None:
    """Register the implementation with transformers, with the masks of its sdpa implementation."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(IMPLEMENTATION, attention_forward)
    AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)


def attention_forward(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    position_bias: Tensor | None = None,
    **unused: Any,
) -> tuple[Tensor, None]:
    """One attention of a transformers model: q [B, H, Q, D], k, v [B, Hkv, K, D]; gives [B, Q, H, D]."""
    if not ACTIVE:
        raise LayerError(
            "attn_implementation='attnbench' needs `with ab.use_backend(NAME):` around the call, and none is active"
        )
    router = ACTIVE[-1]
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    mask: Mask = Causal("top_left") if causal and attention_mask is None and query.shape[2] > 1 else Full()
    scores: tuple[Score, ...] = ()
    if attention_mask is not None:
        mask, scores = router.read(attention_mask, query, key)
    if position_bias is not None:
        raise LayerError("position_bias of transformers is not supported; use its sdpa implementation")
    if softcap is not None:
        scores = (*scores, Softcap(softcap))
    if s_aux is not None:
        scores = (*scores, Sink(s_aux.to(query.dtype)))
    keep = router.keep(query, key, dropout)
    out = router.call(query, key, value, mask=mask, scores=scores, scale=scaling, keep=keep)
    return out.transpose(1, 2).contiguous(), None
