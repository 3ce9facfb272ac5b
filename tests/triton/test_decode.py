"""Few queries over many keys are right when the keys are split, and are split by the rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from attnbench.backend import Backend
from attnbench.judge import judge, make_reference
from attnbench.problem import ALiBi, Bias, BlockSparse, Case, Sink, make_inputs


@pytest.fixture
def parts(triton_backend: Backend) -> Callable[..., int]:
    from attnbench_backends.triton.decode import splits

    def count(processors: int = 132, block_k: int = 64, **changes: Any) -> int:
        small: dict[str, Any] = {"q_len": 1, "k_len": 8192, "q_heads": 32, "head_dim": 128, "dtype": "bf16"}
        return splits(Case(**(small | changes)), block_k, processors)

    return count


@pytest.mark.parametrize(
    "changes",
    [
        {"mask": "causal"},
        {"mask": "causal & window(100, 0)", "q_len": 3, "q_heads": 4, "kv_heads": 2},
        {"mask": "padding(300, 0, 7)", "batch": 3, "q_heads": 4, "kv_heads": 1},
        {"mask": "global(3) | window(9, 0)", "q_len": 5, "head_dim": 40},
        {"mask": "~full"},
        {"mask": "causal", "head_dim": 96, "v_dim": 80, "q_heads": 2},
        {"mask": "causal & window(40, 0)", "scores": (Sink(), ALiBi()), "q_heads": 2, "q_len": 2},
        {"mask": "~full", "scores": (Sink(),), "q_heads": 2},
        {"scores": (Bias("hqk"),), "q_heads": 2, "q_len": 2},
        {"mask": "causal", "dtype": "bf16", "layout": "bshd"},
    ],
    ids=lambda changes: "-".join(f"{name}={value}" for name, value in changes.items())[:60],
)
def test_split_keys_are_right_and_so_are_their_gradients(
    judged: Any, parts: Any, changes: dict[str, Any]
) -> None:
    judged(**{"q_len": 1, "k_len": 300, "q_heads": 1} | changes)


def test_splits_with_a_far_lse_are_right_as_flash_splits_alone(triton_backend: Backend, device: str) -> None:
    # Every score near -4000, V near 1 and then near -1: half an ulp of a split's LSE moves all of out.
    case = Case(q_len=8, k_len=1024, q_heads=1, head_dim=64, dtype="fp32", scale=1.0)
    inputs = make_inputs(case, device=device, distribution="sign_flipped_v")
    inputs.q.mul_(0.01).add_(8.0)
    inputs.k.mul_(0.01).sub_(8.0)
    output = triton_backend.prepare(case, inputs).forward()
    assert judge(make_reference(inputs, triton_backend.capabilities.contract), output, None, inputs).ok
    assert not judge(make_reference(inputs, "flash"), output, None, inputs).ok


def test_these_lengths_are_split_in_the_interpreter(triton_backend: Backend, a_case: Any) -> None:
    import torch
    from attnbench_backends.triton.launch import Plan

    plan = Plan(a_case(q_len=1, k_len=300, q_heads=1), torch.device("cpu"))
    assert plan.splits == 5


def test_one_query_over_a_long_cache_fills_the_machine_twice(parts: Any) -> None:
    assert parts(batch=1, kv_heads=8) == 33
    assert parts(batch=4, kv_heads=8) == 9


def test_a_batch_that_fills_the_machine_is_not_split(parts: Any) -> None:
    assert parts(batch=64, kv_heads=8) == 1


def test_a_part_has_two_blocks_of_keys_at_least(parts: Any) -> None:
    assert parts(k_len=256, kv_heads=1) == 2
    assert parts(k_len=64, kv_heads=1) == 1


def test_a_prefill_is_not_split(parts: Any) -> None:
    assert parts(q_len=128) == 1
    assert parts(q_len=16, k_len=64) == 1


def test_more_rows_than_a_tile_takes_are_not_split(parts: Any) -> None:
    assert parts(q_heads=64, kv_heads=1) > 1
    assert parts(q_heads=65, kv_heads=1) == 1


def test_heads_that_see_different_keys_are_not_split(parts: Any) -> None:
    layout = [[[1, 0]], [[0, 1]]]
    assert parts(q_heads=2, mask=BlockSparse(layout, 4096)) == 1
    assert parts(q_heads=2, mask=BlockSparse([[1, 0]], 4096)) > 1
