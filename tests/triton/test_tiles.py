"""Tiles hold every head dim, and the split index of a relative bias is its index."""

from __future__ import annotations

import pytest
import torch

from attnbench.backend import Backend
from attnbench.problem import Extent, RelativeBias


@pytest.mark.parametrize("dim", [*range(1, 257)])
def test_the_chunks_of_a_head_dim_hold_it_and_waste_less_than_padding(
    triton_backend: Backend, dim: int
) -> None:
    from attnbench_backends.triton.tiles import chunks

    d0, d1 = chunks(dim)
    padded = max(16, 1 << (dim - 1).bit_length())
    assert d0 + d1 >= dim
    assert d0 + d1 <= padded
    for width in (d0, d1):
        assert width == 0 or (width >= 16 and width & (width - 1) == 0)


@pytest.mark.parametrize(
    ("rule", "lengths"),
    [
        ("t5(8, 20, bidirectional)", (9, 30)),
        ("t5(8, 20, causal)", (30, 9)),
        ("t5(32, 128, causal)", (1, 200)),
        ("grid(3, 7)", (21, 21)),
    ],
)
def test_the_split_index_of_a_relative_bias_is_its_index(
    triton_backend: Backend, rule: str, lengths: tuple[int, int]
) -> None:
    from attnbench_backends.triton.changes import offsets_of

    extent, bias = Extent(1, 1, *lengths), RelativeBias(rule)
    offsets = offsets_of(bias, extent, torch.device("cpu"))
    index = (offsets.row[:, None] - offsets.column[None, :]).long()
    entry = index if offsets.entry is None else offsets.entry[index]
    assert torch.equal(entry, bias.index(extent))
