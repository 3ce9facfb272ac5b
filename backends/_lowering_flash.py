"""Masks as the FlashAttention functions take them: a causal flag, a window, packed sequences; never a matrix.

Their documentation (flash_attn_interface.py from 2.1 on; FA3's and FA4's say the same): causal and window are
aligned at the end of each sequence (bottom-right), and a window of (l, r) lets query i attend keys from
`i + seqlen_k - seqlen_q - l` to `i + seqlen_k - seqlen_q + r`, both inclusive. A sequence lies between two
entries of cu_seqlens. Query head h reads key head h // (heads / key heads). Rows without a key give 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from attnbench.problem import Case, Softcap

from . import _lowering as lower


@dataclass(frozen=True)
class FlashCall:
    """The mask's part of one call. `sequences` is None for flash_attn_func, else the varlen form."""

    causal: bool
    window_size: tuple[int | None, int | None]
    sequences: lower.Sequences | None = None

    @property
    def max_seqlens(self) -> tuple[int, int]:
        """The longest sequence of queries and of keys."""
        assert self.sequences is not None
        return max(self.sequences.q_lengths, default=0), max(self.sequences.k_lengths, default=0)


def lowered(case: Case, unlimited: int | None = -1, second: bool = False) -> FlashCall:
    """The call for a case; `unlimited` is how the library says it (-1, in FA4 None); `second`: FlashAttention-2."""
    mask = lower.parts(case)
    if mask is None:
        raise NotImplementedError(f"has no {case.mask} mask, only bands, key lengths and documents")
    packed = None
    left, right = mask.left, mask.right
    if mask.documents is not None or mask.key_lengths is not None:
        packed = lower.sequences(case, mask)
        left, right = lower.band_of_sequences(case, mask, packed)
        _refuse_shifted_alibi(case, mask, packed)
    if (left is not None and left < 0) or (right is not None and right < 0):
        # A negative number means unlimited there.
        raise NotImplementedError(
            f"has no {case.mask}: its band does not hold the diagonal that ends at the last key"
        )
    if second:
        q_lengths, k_lengths = (
            (packed.q_lengths, packed.k_lengths) if packed else ((case.q_len,), (case.k_len,))
        )
        lower.refuse_what_flash2_widens(case, q_lengths, k_lengths, left, right)
    causal = right == 0
    if causal and left is None:
        return FlashCall(True, (unlimited, unlimited), packed)
    window = (unlimited if left is None else left, unlimited if right is None else right)
    return FlashCall(causal, window, packed)


def lowered_varlen(case: Case) -> FlashCall:
    """The varlen form of any mask: without documents, each batch row is a sequence."""
    call = lowered(case, second=True)
    if call.sequences is not None:
        return call
    return FlashCall(call.causal, call.window_size, lower.sequences(case, lower.Parts()))


def _refuse_shifted_alibi(case: Case, mask: lower.Parts, packed: lower.Sequences) -> None:
    """The library counts ALiBi's distances from the end of the sequence: refuse if the keys end elsewhere."""
    if lower.alibi_slopes(case) is None:
        return
    before = 0 if mask.documents is not None else case.k_len - case.q_len
    pairs = zip(packed.q_lengths, packed.k_lengths, strict=True)
    if any(keys - queries != before for queries, keys in pairs if keys):
        raise NotImplementedError(
            f"has no ALiBi with {case.mask}: it would count from the last key in use of each sequence"
        )


def task_of(
    case: Case, call: FlashCall, library: str, file: str = "_call_flash.py", deterministic: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task and its arrays, as _program_torch.py reads them; `deterministic` is about the backward."""
    slopes = lower.alibi_slopes(case)
    task: dict[str, Any] = {
        "call": file,
        "library": library,
        "causal": call.causal,
        "window_size": call.window_size,
        "softcap": next((s.cap for s in case.scores if isinstance(s, Softcap)), 0.0),
        "gradients": lower.gradients_of_scores(case),
        "deterministic": deterministic,
        # With causal, the library adds ALiBi without the query's position, which changes the LSE.
        "lse": slopes is None and not any(s.kind == "sink" for s in case.scores),
    }
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    if slopes is not None:
        arrays["alibi_slopes"] = ("fp32", np.array(slopes, np.float32))
    if call.sequences is not None:
        task["max_seqlens"] = call.max_seqlens
        arrays |= packed_arrays(call.sequences)
    return task, arrays


def packed_arrays(sequences: lower.Sequences) -> dict[str, tuple[str, np.ndarray]]:
    """cu_seqlens, and which tokens are packed, unless all are."""
    arrays = {
        "cu_seqlens_q": ("int32", sequences.cu_seqlens_q),
        "cu_seqlens_k": ("int32", sequences.cu_seqlens_k),
    }
    if not sequences.covers_q:
        arrays["q_tokens"] = ("int64", sequences.q_tokens)
    if not sequences.covers_k:
        arrays["k_tokens"] = ("int64", sequences.k_tokens)
    return arrays
