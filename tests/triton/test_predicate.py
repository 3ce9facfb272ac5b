"""Any symbolic mask, a new one too, becomes the right Triton code, with its numbers in a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from attnbench.backend import Backend
from attnbench.problem import Causal, Explicit, Extent, Mask, SlidingWindow, parse_mask
from attnbench.problem.primitives import Leaf
from attnbench.problem.spans import Ints, Spans, runs

MASKS = [
    "causal",
    "causal(top_left)",
    "window(5, 2)",
    "window(inf, 3) & ~window(1, inf)",
    "padding(20, 3)",
    "padding(20, 3, left)",
    "documents([7, 0, 13], [1, 19])",
    "prefix(4) | documents(8, 8)",
    "global(3)",
    "block_sparse([[[1, 0], [0, 1]], [[0, 1], [1, 0]], [[1, 1], [0, 0]]], 10)",
    "dilated(3) & causal",
    "~(dilated(4) | window(0, 0))",
]


@triton.jit
def _ask(out, table, q_len, k_len, heads, MASK: tl.constexpr, Q: tl.constexpr, K: tl.constexpr):
    plane = tl.program_id(0)
    i = tl.arange(0, Q)[:, None]
    j = tl.arange(0, K)[None, :]
    inside = (i < q_len) & (j < k_len)
    allowed = MASK(table, plane // heads, plane % heads, tl.minimum(i, q_len - 1), tl.minimum(j, k_len - 1))
    tl.store(out + plane * q_len * k_len + i * k_len + j, allowed.to(tl.int8), mask=inside)


@pytest.fixture
def answers(triton_backend: Backend, device: str) -> Callable[[Mask, Extent], torch.Tensor]:
    """The generated code evaluated for every pair: bool [B, H, Q, K]."""
    from attnbench_backends.triton.predicate import compile_predicate

    def ask(mask: Mask, extent: Extent) -> torch.Tensor:
        made = compile_predicate(mask, extent)
        assert made is not None
        out = torch.full(
            (extent.batch, extent.heads, extent.q_len, extent.k_len), 7, dtype=torch.int8, device=device
        )
        table = torch.from_numpy(made.table).to(device)
        sizes = {"Q": triton.next_power_of_2(extent.q_len), "K": triton.next_power_of_2(extent.k_len)}
        _ask[(extent.batch * extent.heads,)](
            out, table, extent.q_len, extent.k_len, extent.heads, MASK=made.function, **sizes
        )  # fmt: skip
        return out.cpu() == 1

    return ask


@pytest.mark.parametrize("text", MASKS)
def test_the_generated_code_says_what_the_mask_says(answers: Any, text: str) -> None:
    mask, extent = parse_mask(text), Extent(2, 3, 20, 20)
    expected = mask.materialize(extent.batch, extent.heads, extent.q_len, extent.k_len)
    assert torch.equal(answers(mask, extent), expected.expand(2, 3, 20, 20))


@pytest.mark.parametrize("lengths", [(3, 50), (50, 3), (1, 33)])
def test_masks_by_place_are_right_where_lengths_differ(answers: Any, lengths: tuple[int, int]) -> None:
    mask, extent = (
        parse_mask("(causal & window(4, 0)) | global(2) | (dilated(5) & prefix(6))"),
        Extent(1, 1, *lengths),
    )
    assert torch.equal(answers(mask, extent), mask.materialize(1, 1, *lengths))


def test_bits_of_an_explicit_mask_are_packed_and_found(answers: Any) -> None:
    allowed = torch.rand(2, 3, 9, 77, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(answers(Explicit(allowed), Extent(2, 3, 9, 77)), allowed)


def test_an_explicit_mask_takes_a_bit_a_pair(triton_backend: Backend) -> None:
    from attnbench_backends.triton.predicate import compile_predicate

    made = compile_predicate(Explicit(np.ones((64, 1024), dtype=bool)), Extent(1, 1, 64, 1024))
    assert made is not None
    assert 64 * 1024 // 32 <= made.table.size < 64 * 1024 // 32 + 16


@dataclass(frozen=True)
class _Checkerboard(Leaf):
    """A mask unknown to the kernel: squares along diagonals, read from a table."""

    squares: tuple[int, ...]
    name: ClassVar[str] = "checkerboard"
    takes: ClassVar[str] = "checkerboard(0 or 1, ...)"

    def __str__(self) -> str:
        return f"checkerboard({', '.join(map(str, self.squares))})"

    @property
    def label(self) -> str:
        return "checkerboard"

    def predicate(self, extent: Extent, device: Any = "cpu") -> Any:
        table = torch.tensor(self.squares, device=device)
        return lambda b, h, q, k: table[(q // 5 + k // 7 + h) % len(self.squares)] != 0

    @property
    def varies_over_heads(self) -> bool:
        return True

    def max_spans(self, extent: Extent) -> int:
        return extent.k_len

    def spans(self, extent: Extent, b: int, h: int, rows: Ints) -> Spans:
        place = rows[:, None] // 5 + np.arange(extent.k_len)[None, :] // 7 + h
        return runs(np.array(self.squares)[place % len(self.squares)] != 0)


def test_a_mask_unknown_to_the_kernel_needs_no_change_of_it(answers: Any, judged: Any) -> None:
    mask = _Checkerboard((1, 0, 0, 1)) & Causal()
    extent = Extent(1, 2, 40, 40)
    assert torch.equal(answers(mask, extent), mask.materialize(1, 2, 40, 40))
    judged(mask=mask)


def test_an_operation_that_has_no_translation_is_named(triton_backend: Backend) -> None:
    from attnbench_backends.triton.predicate import compile_predicate

    class Odd(_Checkerboard):
        def predicate(self, extent: Extent, device: Any = "cpu") -> Any:
            return lambda b, h, q, k: torch.bitwise_left_shift(q, k) > 3

    with pytest.raises(NotImplementedError, match="bitwise_left_shift"):
        compile_predicate(Odd((1,)), Extent(1, 1, 8, 8))


def test_every_window_length_shares_one_source(triton_backend: Backend) -> None:
    from attnbench_backends.triton.predicate import compile_predicate

    extent = Extent(1, 1, 64, 64)
    one, other = (compile_predicate(Causal() & SlidingWindow(n, 0), extent) for n in (7, 31))
    assert one is not None
    assert other is not None
    assert one.source == other.source
    assert one.function is other.function
    assert not np.array_equal(one.table, other.table)
