"""A small Transformer with every part: embeddings, positions, encoder, decoder, cross-attention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnbench.layer import KVCache, MultiheadAttention
from attnbench.problem import Causal, Full, Mask


@dataclass(frozen=True)
class Shape:
    """The sizes of a Transformer; `kv_heads` None is as many as `heads`; lengths in tokens."""

    vocabulary: int
    width: int = 64
    heads: int = 4
    kv_heads: int | None = None
    layers: int = 2
    hidden: int = 128
    pre_norm: bool = True


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """The fixed positions of Attention Is All You Need, section 3.5 (arXiv 1706.03762): [S, width]."""
    pairs = torch.arange(0, width, 2, dtype=torch.float64, device=positions.device)
    angles = positions.double()[:, None] * torch.exp(pairs * (-math.log(10000.0) / width))  # [S, width / 2]
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1)[:, :width].to(dtype)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention if there is a memory, and two linear layers, each with a residual.

    The norm comes before each part (pre_norm) or after each sum, as in the paper.
    """

    def __init__(self, shape: Shape, backend: Any, cross: bool) -> None:
        super().__init__()
        self.pre_norm = shape.pre_norm

        def attention() -> MultiheadAttention:
            return MultiheadAttention(shape.width, shape.heads, kv_heads=shape.kv_heads, backend=backend)

        self.attend_self = attention()
        self.attend_memory = attention() if cross else None
        self.widen, self.narrow = nn.Linear(shape.width, shape.hidden), nn.Linear(shape.hidden, shape.width)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width) for _ in range(3 if cross else 2))

    def forward(
        self,
        x: Tensor,
        mask: Mask,
        memory: Tensor | None = None,
        memory_mask: Mask = Full(),
        cache: KVCache | None = None,
    ) -> Tensor:
        """x [B, S, E] and the memory [B, M, E] of an encoder: [B, S, E]."""

        def to_self(y: Tensor) -> Tensor:
            return self.attend_self(y, y, y, mask=mask, cache=cache)[0]

        def to_memory(y: Tensor) -> Tensor:
            assert self.attend_memory is not None
            assert memory is not None
            return self.attend_memory(y, memory, memory, mask=memory_mask)[0]

        parts = [to_self] if memory is None else [to_self, to_memory]
        for norm, part in zip(self.norms, [*parts, self._mixed], strict=True):
            x = x + part(norm(x)) if self.pre_norm else norm(x + part(x))
        return x

    def _mixed(self, y: Tensor) -> Tensor:
        return self.narrow(F.gelu(self.widen(y)))


class Stack(nn.Module):
    """Blocks over embedded tokens (or vectors) with positions added: an encoder or a decoder."""

    def __init__(self, shape: Shape, backend: Any, cross: bool = False) -> None:
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.vocabulary, shape.width)
        nn.init.normal_(self.embed.weight, std=shape.width**-0.5)
        self.blocks = nn.ModuleList(TransformerBlock(shape, backend, cross) for _ in range(shape.layers))
        self.norm = nn.LayerNorm(shape.width) if shape.pre_norm else nn.Identity()

    def forward(
        self,
        tokens: Tensor,
        mask: Mask,
        memory: Tensor | None = None,
        memory_mask: Mask = Full(),
        caches: Sequence[KVCache] | None = None,
    ) -> Tensor:
        """Tokens [B, S] (or vectors [B, S, width]) to [B, S, width]; with caches, S are the newest tokens."""
        x = self.embed(tokens) * math.sqrt(self.shape.width) if tokens.ndim == 2 else tokens
        first = caches[0].length if caches else 0
        positions = torch.arange(first, first + x.shape[1], device=x.device)
        x = x + sinusoids(positions, self.shape.width, x.dtype)
        for n, block in enumerate(self.blocks):
            x = block(x, mask, memory, memory_mask, caches[n] if caches else None)
        return self.norm(x)


class Decoder(nn.Module):
    """A language model: each token from those before it. The output weights are the embedding's."""

    def __init__(self, shape: Shape, backend: Any = "naive", mask: Mask = Causal()) -> None:
        super().__init__()
        self.stack, self.mask = Stack(shape, backend), mask

    def forward(
        self, tokens: Tensor, caches: Sequence[KVCache] | None = None, padding: Mask | None = None
    ) -> Tensor:
        """Tokens [B, S] to logits [B, S, vocabulary]."""
        mask = self.mask if padding is None else self.mask & padding
        return F.linear(self.stack(tokens, mask, caches=caches), self.stack.embed.weight)

    def new_caches(self, capacity: int = 0) -> list[KVCache]:
        """An empty cache per block."""
        return [KVCache(capacity) for _ in self.stack.blocks]


class Classifier(nn.Module):
    """An encoder whose mean over the real tokens is classified; with `patch`, a token is that many numbers."""

    def __init__(self, shape: Shape, classes: int, backend: Any = "naive", patch: int = 0) -> None:
        super().__init__()
        self.stack = Stack(shape, backend)
        self.lift = nn.Linear(patch, shape.width) if patch else None
        self.head = nn.Linear(shape.width, classes)

    def forward(self, tokens: Tensor, mask: Mask, real: Tensor | None = None) -> Tensor:
        """Tokens [B, S] (or patches [B, S, patch]), real [B, S]: logits [B, classes]."""
        x = self.stack(tokens if self.lift is None else self.lift(tokens), mask)
        if real is None:
            return self.head(x.mean(dim=1))
        share = real.to(x.dtype) / real.sum(dim=1, keepdim=True)
        return self.head((x * share[..., None]).sum(dim=1))


class EncoderDecoder(nn.Module):
    """The paper's translation form: an encoder, and a decoder that attends to it."""

    def __init__(self, shape: Shape, backend: Any = "naive") -> None:
        super().__init__()
        self.encoder, self.decoder = Stack(shape, backend), Stack(shape, backend, cross=True)

    def forward(self, source: Tensor, target: Tensor, source_mask: Mask) -> Tensor:
        """Source [B, M], target [B, S]: logits [B, S, vocabulary] of the next target tokens."""
        memory = self.encoder(source, source_mask)
        y = self.decoder(target, Causal(), memory, source_mask)
        return F.linear(y, self.decoder.embed.weight)
