# mypy: ignore-errors
"""memory_efficient_attention and its bias classes, with their names and documented meaning, computed plainly.

Query [B, M, H, K] or [B, M, G, H, K]; "the mask matrix" of a bias object is made here as its documentation has it.
"""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from exact_attention import attend, band


@dataclass
class Lengths:
    lengths: list
    padding: int = 0

    @property
    def intervals(self):
        starts = [
            n * self.padding if self.padding else sum(self.lengths[:n]) for n in range(len(self.lengths))
        ]
        return [(start, start + length) for start, length in zip(starts, self.lengths, strict=True)]


@dataclass
class Bias:
    causal = False
    from_end = True

    def allowed(self, queries, keys):
        left = getattr(self, "window_left", None)
        right = getattr(self, "window_right", 0 if self.causal else None)
        if getattr(self, "_window_size", None):
            left = self._window_size - 1
        if not self.from_end:
            return (
                band(queries, queries, False, left, right)[:, :keys]
                if keys <= queries
                else torch.cat(
                    [
                        band(queries, queries, False, left, right),
                        torch.zeros(queries, keys - queries, dtype=torch.bool),
                    ],
                    1,
                )
            )
        return band(queries, keys, False, left, right)


@dataclass
class LowerTriangularMask(Bias):
    causal = True
    from_end = False


@dataclass
class LowerTriangularFromBottomRightMask(Bias):
    causal = True


@dataclass
class LowerTriangularFromBottomRightLocalAttentionMask(Bias):
    _window_size: int
    causal = True


@dataclass
class LocalAttentionFromBottomRightMask(Bias):
    window_left: int
    window_right: int


@dataclass
class BlockDiagonalMask(Bias):
    q_seqinfo: Lengths
    k_seqinfo: Lengths
    _batch_sizes: Any = None

    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen=None, *, device=None):
        return cls(Lengths(q_seqlen), Lengths(q_seqlen if kv_seqlen is None else kv_seqlen))

    def whole(self, queries, keys):
        table = torch.zeros(queries, keys, dtype=torch.bool)
        for (a, b), (c, d) in zip(self.q_seqinfo.intervals, self.k_seqinfo.intervals, strict=True):
            table[a:b, c:d] = self.allowed(b - a, d - c)
        return table


class BlockDiagonalCausalMask(BlockDiagonalMask):
    causal = True
    from_end = False


class BlockDiagonalCausalFromBottomRightMask(BlockDiagonalMask):
    causal = True


@dataclass
class BlockDiagonalCausalLocalAttentionMask(BlockDiagonalCausalMask):
    _window_size: int = 0


@dataclass
class BlockDiagonalCausalLocalAttentionFromBottomRightMask(BlockDiagonalCausalFromBottomRightMask):
    _window_size: int = 0


@dataclass
class BlockDiagonalPaddedKeysMask(BlockDiagonalMask):
    @classmethod
    def from_seqlens(cls, q_seqlen, kv_padding, kv_seqlen, causal_diagonal=None, *, device=None):
        return cls(Lengths(q_seqlen), Lengths(kv_seqlen, kv_padding))


class BlockDiagonalCausalWithOffsetPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    causal = True


@dataclass
class BlockDiagonalCausalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    _window_size: int = 0
    causal = True


@dataclass
class BlockDiagonalLocalAttentionPaddedKeysMask(BlockDiagonalPaddedKeysMask):
    window_left: int = 0
    window_right: int = 0


CLASSES = [c for c in list(globals().values()) if isinstance(c, type) and issubclass(c, Bias)]
attn_bias = SimpleNamespace(**{c.__name__: c for c in CLASSES})
cutlass, flash, flash3 = (
    SimpleNamespace(FwOp=SimpleNamespace(NAME=f"{name}F"), BwOp=SimpleNamespace(NAME=f"{name}B"))
    for name in ("cutlass", "fa2", "fa3")
)


def memory_efficient_attention(
    query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None, output_dtype=None
):
    assert op is not None, "no operator is pinned"
    assert query.ndim == key.ndim == value.ndim
    shape = (*query.shape[:-1], value.shape[-1])
    # "BMGHK": heads per group are the inner dimension.
    q, k, v = (x.flatten(2, 3) if x.ndim == 5 else x for x in (query, key, value))
    assert q.shape[2] == k.shape[2]
    outs = []
    for b in range(q.shape[0]):
        allowed, bias = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool), None
        if isinstance(attn_bias, torch.Tensor):
            bias = (attn_bias.flatten(1, 2) if attn_bias.ndim == 5 else attn_bias)[b]
        elif isinstance(attn_bias, BlockDiagonalMask):
            assert q.shape[0] == 1, "packed sequences have batch 1"
            allowed = attn_bias.whole(q.shape[1], k.shape[1])
        elif attn_bias is not None:
            allowed = attn_bias.allowed(q.shape[1], k.shape[1])
        if bias is not None:
            allowed, bias = bias != -torch.inf, bias.masked_fill(bias == -torch.inf, 0.0)
        outs.append(attend(q[b], k[b], v[b], allowed, scale, bias=bias)[0])
    return torch.stack(outs).reshape(shape)
