"""Attention as public half-precision code writes it: every product and sum in the dtype of the inputs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnbench.problem import Causal, Full, Mask, Score


def repeated(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values of each query head."""
    group = q.shape[1] // k.shape[1]
    return k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)


def no_score_changes(scores: Sequence[Score]) -> None:
    if scores:
        raise NotImplementedError("takes no score changes")


def allowed_in(mask: Mask, q: Tensor, k: Tensor) -> Tensor:
    """bool [B, H, Q, K]."""
    return mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2], device=q.device)


def annotated_transformer(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """The product divided by sqrt(D), -1e9 (the lowest finite number of fp16) where masked, softmax in the dtype."""
    no_score_changes(scores)
    k, v = repeated(q, k, v)
    s = torch.matmul(q, k.transpose(-2, -1)) / (1 / scale)
    s = s.masked_fill(allowed_in(mask, q, k) == 0, max(-1e9, torch.finfo(q.dtype).min))
    return torch.matmul(s.softmax(dim=-1), v)


def min_gpt(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """The scale on the product, -inf above the diagonal of a square, softmax in the dtype."""
    no_score_changes(scores)
    if mask != Causal() or q.shape[2] != k.shape[2] or q.shape[1] != k.shape[1]:
        raise NotImplementedError("takes causal masks, equal lengths and as many key heads as query heads")
    s = (q @ k.transpose(-2, -1)) * scale
    square = torch.tril(torch.ones(q.shape[2], q.shape[2], device=q.device))
    s = s.masked_fill(square == 0, float("-inf"))
    return torch.nn.functional.softmax(s, dim=-1) @ v


def llama_eager(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """An additive mask of the lowest finite number, softmax in float32, its weights rounded to the dtype."""
    no_score_changes(scores)
    k, v = repeated(q, k, v)
    s = torch.matmul(q, k.transpose(2, 3)) * scale
    if mask != Full():
        s = s + torch.zeros_like(s).masked_fill(~allowed_in(mask, q, k), torch.finfo(q.dtype).min)
    p = torch.nn.functional.softmax(s, dim=-1, dtype=torch.float32).to(q.dtype)
    return torch.matmul(p, v)


def in_float32(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """FLASH without tiles: scores and softmax in float32."""
    no_score_changes(scores)
    k32, v32 = repeated(q.float(), k.float(), v.float())
    s = q.float() @ k32.transpose(-2, -1) * scale
    may = allowed_in(mask, q, k)
    s = s.masked_fill(~may, -math.inf).masked_fill(~may.any(-1, keepdim=True), 0.0)
    p = torch.softmax(s, -1).masked_fill(~may.any(-1, keepdim=True), 0.0)
    return ((p + (p.to(q.dtype).float() - p).detach()) @ v32).to(q.dtype)
