"""The cases of the lowering tests: which backend takes which mask, by hand, and how its request is made and read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from attnbench_backends import _lowering_flash as flash
from attnbench_backends import _lowering_flashinfer as flashinfer
from attnbench_backends import _lowering_jax as jax
from attnbench_backends import _lowering_xformers as xformers
from attnbench_backends.torch_nested import request as nested_request

from attnbench.problem import Case, Mask, parse_mask
from tests.lowering.readings import (
    Request,
    read_flash,
    read_flash_2,
    read_flashinfer,
    read_jax,
    read_xformers,
    read_xformers_2,
)

Lower = Callable[[Case], Request]
Read = Callable[[Case, Request], np.ndarray]

BACKENDS: dict[str, tuple[Lower, Read]] = {
    "flash_attn": (lambda c: flash.task_of(c, flash.lowered(c, second=True), "flash_attn"), read_flash_2),
    "flash_attn_3": (lambda c: flash.task_of(c, flash.lowered(c), "flash_attn_3"), read_flash),
    "flash_attn_4": (
        lambda c: flash.task_of(c, flash.lowered(c, unlimited=None), "flash_attn_4"),
        read_flash,
    ),
    "torch_varlen": (lambda c: flash.task_of(c, flash.lowered_varlen(c), "torch_varlen"), read_flash_2),
    "torch_nested": (nested_request, read_flash),
    "xformers_cutlass": (
        lambda c: xformers.task_of(c, xformers.lowered(c, "cutlass"), "cutlass"),
        read_xformers,
    ),
    "xformers_flash2": (
        lambda c: xformers.task_of(c, xformers.lowered(c, "flash"), "flash"),
        read_xformers_2,
    ),
    "xformers_flash3": (
        lambda c: xformers.task_of(c, xformers.lowered(c, "flash3"), "flash3"),
        read_xformers,
    ),
    "jax_xla": (lambda c: jax.task_of(c, jax.lowered_xla(c), "jax", "xla"), read_jax),
    "jax_cudnn": (lambda c: jax.task_of(c, jax.lowered_cudnn(c), "jax", "cudnn"), read_jax),
    "flax_mha": (lambda c: jax.task_of(c, jax.lowered_flax(c), "flax", "xla"), read_jax),
    "flashinfer": (flashinfer.lowered, read_flashinfer),
}
NESTED = frozenset({"torch_nested"})  # whole sequences only
ALL = frozenset(BACKENDS) - NESTED
FLASH = frozenset({"flash_attn", "flash_attn_3", "flash_attn_4", "torch_varlen"})
FLASH_2 = frozenset({"flash_attn", "torch_varlen", "xformers_flash2"})
XFORMERS = frozenset({"xformers_cutlass", "xformers_flash2", "xformers_flash3"})
MATRIX = frozenset(
    {"jax_xla", "flax_mha", "xformers_cutlass", "jax_cudnn", "flashinfer"}
)  # forward; jax_cudnn has no backward of one

# (mask, q_len, k_len, batch) -> the backends that take it forward, by hand.
CASES: dict[tuple[str, int, int, int], frozenset[str]] = {
    ("full", 8, 8, 2): ALL | NESTED,
    ("causal", 8, 8, 1): ALL,
    ("causal", 5, 8, 1): ALL,
    ("causal", 8, 5, 1): ALL,
    ("causal(top_left)", 5, 8, 1): MATRIX,
    ("causal(top_left)", 8, 5, 1): ALL,
    ("causal(top_left)", 20, 8, 1): ALL - FLASH_2,
    ("window(2, inf)", 20, 8, 1): ALL - FLASH_2,
    ("window(2, 30)", 20, 8, 1): ALL - FLASH_2,
    ("window(3, 2)", 8, 8, 1): ALL - {"jax_cudnn"},
    ("window(3, 2)", 5, 8, 1): ALL,
    ("window(2, inf)", 8, 8, 1): ALL - {"jax_cudnn"},
    ("causal & window(3, 0)", 8, 8, 1): ALL,
    ("causal & window(3, 5)", 5, 8, 1): ALL,
    ("padding(5, 8, 2)", 8, 8, 3): ALL | NESTED,
    ("causal & padding(8, 8)", 8, 8, 2): ALL,
    ("causal & padding(5, 8)", 8, 8, 2): MATRIX,
    ("causal & padding(6, 6)", 4, 8, 2): ALL - {"xformers_flash2"},
    ("padding(5, 8, left)", 8, 8, 2): MATRIX,
    ("documents(3, 2, 3)", 8, 8, 2): ALL | NESTED,
    ("documents([3, 5], [6, 2])", 8, 8, 2): ALL | NESTED,
    ("documents(3, 2)", 8, 8, 2): ALL | NESTED,
    ("documents(3, 2, 3) & causal", 8, 8, 1): ALL,
    ("documents(4, 4) & causal & window(2, 0)", 8, 8, 1): ALL,
    ("documents(3, 5) & padding(7, 8)", 8, 8, 2): ALL | NESTED,
    ("prefix(3)", 8, 8, 1): MATRIX,
    ("global(2) | window(1, 1)", 8, 8, 1): MATRIX,
    ("block_sparse([[1, 0], [1, 1]], 4)", 8, 8, 1): MATRIX,
    ("dilated(2) & causal", 8, 8, 1): MATRIX,
    ("~causal", 8, 8, 1): MATRIX,
}


def problem(mask: str | Mask, q_len: int, k_len: int, batch: int, **changes: Any) -> Case:
    whole = parse_mask(mask) if isinstance(mask, str) else mask
    small: dict[str, Any] = {"q_heads": 2, "head_dim": 8, "dtype": "bf16"}
    return Case(**(small | {"q_len": q_len, "k_len": k_len, "batch": batch, "mask": whole} | changes))


def wanted(case: Case) -> np.ndarray:
    whole = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len).numpy()
    return np.broadcast_to(whole, (case.batch, case.q_heads, case.q_len, case.k_len))


def taken(name: str) -> Iterator[tuple[Case, Request]]:
    for (mask, q_len, k_len, batch), takers in CASES.items():
        if name in takers:
            case = problem(mask, q_len, k_len, batch)
            yield case, BACKENDS[name][0](case)
