"""Masks as FlashInfer's ragged prefill takes them: packed sequences, causal, a left window; else every pair.

Its documentation (flashinfer.BatchPrefillWithRaggedKVCacheWrapper.plan, 0.6): sequence n is rows indptr[n] to
indptr[n + 1]; `causal` is aligned at the end of each sequence (append attention); `window_left` is inclusive, and -1 is
unlimited; `custom_mask` is bool, True may attend, the sequences' [q_len, k_len] matrices flattened one after another,
the same for all heads, and replaces `causal`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from attnbench.problem import Case, Softcap

from . import _lowering as lower
from ._lowering_flash import packed_arrays

HEAD_DIMS = (64, 128, 256)
Arrays = dict[str, tuple[str, np.ndarray]]


def request(case: Case) -> tuple[dict[str, Any], Arrays]:
    """The task and its arrays; NotImplementedError if there is no such call."""
    if case.head_dim not in HEAD_DIMS:
        raise NotImplementedError(f"takes head dims {', '.join(map(str, HEAD_DIMS))}, not {case.head_dim}")
    return lowered(case)


def lowered(case: Case) -> tuple[dict[str, Any], Arrays]:
    """As `request`, for any head dim."""
    causal, window_left, packed = _band(case)
    arrays: Arrays = {}
    if packed is None:
        dense = lower.dense_mask(case)  # [B|1, H|1, Q, K]
        if dense.shape[1] > 1:
            raise NotImplementedError(f"has no {case.mask}: its custom mask is the same for all heads")
        whole = np.broadcast_to(dense[:, 0], (case.batch, case.q_len, case.k_len))
        arrays["custom_mask"] = ("bool", whole.flatten())
        packed = lower.sequences(case, lower.Parts())
    task: dict[str, Any] = {
        "call": "_call_flashinfer.py",
        "library": "flashinfer",
        "causal": causal,
        "window_left": window_left,
        "softcap": next((s.cap for s in case.scores if isinstance(s, Softcap)), 0.0),
        "gradients": {},
    }
    return task, arrays | packed_arrays(packed)


def _band(case: Case) -> tuple[bool, int, lower.Sequences | None]:
    """(causal, window_left, sequences); sequences is None if only a matrix says the mask."""
    dense: tuple[bool, int, None] = (False, -1, None)
    mask = lower.parts(case)
    if mask is None:
        return dense
    packed = lower.sequences(case, mask)
    try:
        left, right = lower.band_of_sequences(case, mask, packed)
    except NotImplementedError:
        return dense
    if right is not None and right >= max(packed.q_lengths, default=0) - 1:
        right = None  # the first query, at keys - queries, sees the last key
    if right not in (None, 0) or (left is not None and left < 0):
        return dense
    return right == 0, -1 if left is None else left, packed
