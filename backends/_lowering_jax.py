"""What is jax.nn.dot_product_attention passed for a mask? Flags where its documented meaning is ours, else a matrix.

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
    """Any mask: what has no flag goes in as a matrix."""
    found = lower.parts(case)
    if found is None or found.documents is not None:
        return JaxCall(mask=lower.dense_mask(case))
    shift = case.k_len - case.q_len
    lengths = None if found.key_lengths is None else np.array(found.key_lengths, np.int32)
    if found.left is None and found.right is None:
        return JaxCall(key_lengths=lengths)
    if found.left is None and found.right == -shift:
        return JaxCall(is_causal=True, key_lengths=lengths)
    if shift != 0:
        # A window counted from the first tokens would need a negative size: not a documented one.
        return JaxCall(mask=lower.dense_mask(case))
    left = case.q_len if found.left is None else found.left
    if found.right == 0:
        return JaxCall(is_causal=True, local_window_size=(left, 0), key_lengths=lengths)
    return JaxCall(
        local_window_size=(left, case.k_len if found.right is None else found.right), key_lengths=lengths
    )


def lowered_cudnn(case: Case) -> JaxCall:
    """What cuDNN's flash attention takes: no matrix beside flags, a window only to the left and with causal."""
    call = lowered_xla(case)
    if call.mask is not None:
        if case.needs_backward:
            raise NotImplementedError(
                f"no {case.mask}: a matrix goes in as a bias, whose backward costs a gradient of [B, H, Q, K]"
            )
        return call
    if call.local_window_size is not None and not call.is_causal:
        raise NotImplementedError(f"no {case.mask}: cuDNN has a window only to the left, beside causal")
    if call.local_window_size is not None and call.key_lengths is not None:
        raise NotImplementedError(f"no {case.mask}: cuDNN's window is not joined with key lengths")
    return call


def lowered_flax(case: Case) -> JaxCall:
    """flax's layer takes a matrix only; True where a pair takes part."""
    found = lower.parts(case)
    return JaxCall() if found is not None and found.is_full else JaxCall(mask=lower.dense_mask(case))


def task_of(
    case: Case, call: JaxCall, program: str, implementation: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The request and its arrays, as the program in the JAX environment reads them."""
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
