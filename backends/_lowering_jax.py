"""Masks as jax.nn.dot_product_attention takes them: flags if they mean the mask, else a matrix.

Its `is_causal` and `local_window_size` count both from the first token (top-left); a window of (l, r) is inclusive on
both sides; `key_value_seq_lengths` keeps the first keys; `mask` is True where a pair takes part. All are joined by
"and".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attnbench.problem import Case

from . import _lowering as lower

SOURCE = "https://docs.jax.dev/en/latest/_autosummary/jax.nn.dot_product_attention.html"


@dataclass(frozen=True)
class JaxCall:
    """The mask's part of one call."""

    is_causal: bool = False
    local_window_size: tuple[int, int] | None = None
    key_lengths: np.ndarray | None = None  # int32 [B]
    mask: np.ndarray | None = None  # bool [B|1, H|1, Q, K]


def lowered_xla(case: Case) -> JaxCall:
    """Any mask; without flags that mean it, as a matrix."""
    mask = lower.parts(case)
    if mask is None or mask.documents is not None:
        return JaxCall(mask=lower.dense_mask(case))
    shift = case.k_len - case.q_len
    lengths = None if mask.key_lengths is None else np.array(mask.key_lengths, np.int32)
    if mask.left is None and mask.right is None:
        return JaxCall(key_lengths=lengths)
    if mask.left is None and mask.right == -shift:
        return JaxCall(is_causal=True, key_lengths=lengths)
    if shift != 0:
        # A window counted from the first tokens would need a negative size: not a documented one.
        return JaxCall(mask=lower.dense_mask(case))
    left = case.q_len if mask.left is None else mask.left
    if mask.right == 0:
        return JaxCall(is_causal=True, local_window_size=(left, 0), key_lengths=lengths)
    return JaxCall(
        local_window_size=(left, case.k_len if mask.right is None else mask.right), key_lengths=lengths
    )


def lowered_cudnn(case: Case) -> JaxCall:
    """What cuDNN's flash attention takes: no matrix beside flags, and only a left window, with causal."""
    call = lowered_xla(case)
    if call.mask is not None:
        if case.needs_backward:
            raise NotImplementedError(
                f"has no {case.mask}: a matrix is passed as a bias, whose backward computes a gradient of [B, H, Q, K]"
            )
        return call
    if call.local_window_size is not None and not call.is_causal:
        raise NotImplementedError(f"has no {case.mask}: cuDNN takes a left window only, with causal")
    if call.local_window_size is not None and call.key_lengths is not None:
        raise NotImplementedError(f"has no {case.mask}: cuDNN takes no window together with key lengths")
    return call


def lowered_flax(case: Case) -> JaxCall:
    """flax's layer takes a matrix only; True where a pair takes part."""
    mask = lower.parts(case)
    return JaxCall() if mask is not None and mask.is_full else JaxCall(mask=lower.dense_mask(case))


def task_of(
    case: Case, call: JaxCall, program: str, implementation: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task and its arrays, as _program_jax.py reads them."""
    task = {
        "program": program,
        "implementation": implementation,
        "is_causal": call.is_causal,
        "local_window_size": call.local_window_size,
        "alibi_slopes": lower.alibi_slopes(case),
        "gradients": lower.gradients_of_scores(case),
    }
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    if call.mask is not None:
        arrays["mask"] = ("bool", call.mask)
    if call.key_lengths is not None:
        arrays["key_lengths"] = ("int32", call.key_lengths)
    arrays |= lower.relative_index(case)
    return task, arrays
