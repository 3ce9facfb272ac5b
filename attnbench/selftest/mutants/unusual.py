"""Mutants of sizes and dtypes that a kernel was not written for."""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend.interface import Output
from attnbench.selftest.mutants.catalogue import HALVES, mutant
from attnbench.selftest.mutants.tiled import Tiled


def _within_256(self: Tiled, q: Tensor, k: Tensor) -> Tensor:
    return q[..., :256] @ k[..., :256].transpose(-1, -2)


def _in_pairs(self: Tiled, q: Tensor, k: Tensor) -> Tensor:
    d = max(1, q.shape[-1] // 2 * 2)
    return q[..., :d] @ k[..., :d].transpose(-1, -2)


mutant(
    "features past 256 not read", "not attention", "a head dim of 320 is taken for 256", product=_within_256
)
mutant("the last odd feature not read", "tail tile", "loads of two halves at once", product=_in_pairs)


def _lse_by_key_head(self: Tiled, out: Tensor, lse: Tensor) -> Output:
    # Grouped queries of one key head are rows of one tile, and are written back in that order.
    c = self.case
    if c.q_len == 1 and c.group > 1:
        lse = lse.unflatten(1, (c.group, c.kv_heads)).transpose(1, 2).flatten(1, 2)
    return Output(out, lse)


mutant(
    "LSE of grouped decoding by key head",
    "lse",
    "heads packed into rows: out is unpacked, the LSE is not",
    store=_lse_by_key_head,
    shows_without_lse=False,
)


def _index_in_float32(self: Tiled, rows: slice, cols: slice) -> Tensor:
    # The pair's number i * k_len + j, kept in float32, is odd no more past 2^24.
    allowed = Tiled.allowed(self, rows, cols)
    q = torch.arange(rows.start, rows.stop, device=self.device)[:, None]
    k = torch.arange(cols.start, cols.stop, device=self.device)
    number = q * self.case.k_len + k
    return allowed & (number.float().long() == number)


mutant(
    "pair index in float32",
    "missing keys",
    "exact up to 2^24: 4096 queries times 4096 keys",
    allowed=_index_in_float32,
)


def _bits_as_the_dtype(self: Tiled, name: str) -> Tensor:
    x = Tiled.read(self, name)
    return x if x.dtype == self.dtype else x.contiguous().view(self.dtype)[..., : x.shape[-1]]


mutant(
    "float32 read as half precision",
    "protocol",
    "a pointer without its dtype",
    dtypes=HALVES,
    read=_bits_as_the_dtype,
)
