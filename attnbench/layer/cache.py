"""A KV cache: the keys and values of earlier tokens in a buffer that doubles, one per layer."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.errors import LayerError


class KVCache:
    """The keys and values that one layer has projected so far: [B, Hkv, length, D] each.

    For generation: it is written in place, so it refuses tensors that want gradients. `capacity` is the
    initial length of the buffer, which doubles when it is full.
    """

    def __init__(self, capacity: int = 0) -> None:
        if capacity < 0:
            raise LayerError(f"capacity is a number of tokens, not {capacity}")
        self.length = 0
        self._capacity = capacity
        self._k: Tensor | None = None
        self._v: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append k, v [B, Hkv, new, D]; returns all keys and values so far, as views of the buffer."""
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise LayerError(
                "a KV cache is written in place and carries no gradients; call the layer under torch.no_grad()"
            )
        if self._k is not None and (self._k.shape[:2] != k.shape[:2] or self._k.dtype != k.dtype):
            raise LayerError(
                f"the cache holds {self._k.dtype} keys of batch {self._k.shape[0]} and {self._k.shape[1]} heads, "
                f"but {k.dtype} keys of batch {k.shape[0]} and {k.shape[1]} heads were passed; "
                "take a new KVCache for a new batch"
            )
        end = self.length + k.shape[2]
        self._k, self._v = self._room(self._k, k, end), self._room(self._v, v, end)
        self._k[:, :, self.length : end] = k
        self._v[:, :, self.length : end] = v
        self.length = end
        return self._k[:, :, :end], self._v[:, :, :end]

    def _room(self, buffer: Tensor | None, like: Tensor, end: int) -> Tensor:
        if buffer is not None and buffer.shape[2] >= end:
            return buffer
        capacity = max(end, self._capacity, 0 if buffer is None else 2 * buffer.shape[2])
        grown = like.new_empty(*like.shape[:2], capacity, like.shape[3])
        if buffer is not None:
            grown[:, :, : self.length] = buffer[:, :, : self.length]
        return grown
