"""Masks as xFormers' memory_efficient_attention takes them: the name and the numbers of one of its bias classes.

The classes by their documentation (xformers/ops/fmha/attn_bias.py): LowerTriangular is aligned top-left,
...FromBottomRight at the last key; LocalAttentionFromBottomRight(window_left, window_right) is inclusive on both
sides; a `_window_size` of w is w - 1 keys to the left and the query's own; BlockDiagonal masks take packed sequences,
Padded ones keys with a gap after each sequence's. `OPERATORS` says which operator takes which class (fmha/cutlass.py,
flash.py and flash3.py of 0.0.34 and 0.0.35); the chosen class is one that the pinned operator takes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from attnbench.problem import Case

from . import _lowering as lower
from ._lowering_flash import packed_arrays

SOURCE = "https://facebookresearch.github.io/xformers/components/ops.html"

FLASH_BOTH_WAYS = frozenset(
    {
        "",
        "LowerTriangularMask",
        "LowerTriangularFromBottomRightMask",
        "LowerTriangularFromBottomRightLocalAttentionMask",
        "LocalAttentionFromBottomRightMask",
        "BlockDiagonalMask",
        "BlockDiagonalCausalMask",
        "BlockDiagonalCausalFromBottomRightMask",
        "BlockDiagonalCausalLocalAttentionMask",
        "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
    }
)
PADDED = frozenset(
    {
        "BlockDiagonalPaddedKeysMask",
        "BlockDiagonalCausalWithOffsetPaddedKeysMask",
        "BlockDiagonalCausalLocalAttentionPaddedKeysMask",
    }
)
CUTLASS_BOTH_WAYS = frozenset(
    {
        "",
        "Tensor",
        "LowerTriangularMask",
        "LowerTriangularFromBottomRightMask",
        "BlockDiagonalMask",
        "BlockDiagonalCausalMask",
        "BlockDiagonalCausalFromBottomRightMask",
        "BlockDiagonalCausalLocalAttentionMask",
    }
)
# Operator -> the classes of its forward alone, and of forward and backward; "" is no bias, "Tensor" a dense one.
OPERATORS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "cutlass": (
        CUTLASS_BOTH_WAYS
        | {
            "LowerTriangularFromBottomRightLocalAttentionMask",
            "BlockDiagonalCausalWithOffsetPaddedKeysMask",
            "BlockDiagonalCausalLocalAttentionFromBottomRightMask",
        },
        CUTLASS_BOTH_WAYS,
    ),
    "flash": (FLASH_BOTH_WAYS | PADDED, FLASH_BOTH_WAYS),
    "flash3": (FLASH_BOTH_WAYS | PADDED | {"BlockDiagonalLocalAttentionPaddedKeysMask"}, FLASH_BOTH_WAYS),
}


@dataclass(frozen=True)
class XformersCall:
    """The mask's part of one call.

    `bias` names the class ("" for none, "Tensor" for a dense one), `numbers` are its arguments: q_lengths, k_lengths,
    kv_padding, window (keys in a causal window, with the query's own), window_left, window_right. `sequences` are
    packed; a padded class takes packed queries and unpacked keys.
    """

    bias: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)
    sequences: lower.Sequences | None = None

    @property
    def packs_keys(self) -> bool:
        return self.sequences is not None and "Padded" not in self.bias


def lowered(case: Case, operator: str) -> XformersCall:
    """The first form of the mask that the operator takes in the case's direction."""
    if case.group != 1 and case.needs_backward:
        raise NotImplementedError("its backward takes no grouped heads (the 5-D form)")
    takes = OPERATORS[operator][case.needs_backward]
    if lower.has_bias(case) or lower.alibi_slopes(case) is not None:
        forms: list[XformersCall] = [XformersCall("Tensor")]
    else:
        forms = list(_forms(case, top_left=operator == "cutlass"))
    for form in forms:
        if form.bias in takes:
            if operator == "flash" and "window_right" in form.numbers:
                ends = (form.numbers["window_left"], form.numbers["window_right"])
                lower.refuse_what_flash2_widens(case, (case.q_len,), (case.k_len,), *ends)
            if form.bias == "Tensor" and case.k_len % 8:
                raise NotImplementedError(f"a dense bias needs a multiple of 8 keys, not {case.k_len}")
            return form
    names = ", ".join(form.bias for form in forms if form.bias != "Tensor") or "a dense bias"
    way = "forward and backward" if case.needs_backward else "forward"
    raise NotImplementedError(f"has no {case.mask} mask {way}: it would need {names}")


def _forms(case: Case, top_left: bool) -> Iterator[XformersCall]:
    """Every form of the mask, the most special first; all mean the same."""
    mask = lower.parts(case)
    if mask is not None and mask.documents is None and mask.key_lengths is None:
        yield from _band(case, mask.left, mask.right, top_left)
    elif mask is not None:
        yield from _packed(case, mask, lower.sequences(case, mask), top_left)
    yield XformersCall("Tensor")


def _band(case: Case, left: int | None, right: int | None, top_left: bool) -> Iterator[XformersCall]:
    shift = case.k_len - case.q_len
    if left is None and right is None:
        yield XformersCall()
    elif left is None and right == -shift and (top_left or shift == 0):
        yield XformersCall("LowerTriangularMask")
    elif left is None and right == 0:
        yield XformersCall("LowerTriangularFromBottomRightMask")
    elif right == 0 and left is not None:
        yield XformersCall("LowerTriangularFromBottomRightLocalAttentionMask", {"window": left + 1})
    if (right is None or right >= 0) and (left is not None or right is not None):
        # A window wider than any distance is unlimited.
        whole = case.q_len + case.k_len
        ends = {
            "window_left": whole if left is None else left,
            "window_right": whole if right is None else right,
        }
        yield XformersCall("LocalAttentionFromBottomRightMask", ends)


def _packed(case: Case, mask: lower.Parts, packed: lower.Sequences, top_left: bool) -> Iterator[XformersCall]:
    lengths = {"q_lengths": packed.q_lengths, "k_lengths": packed.k_lengths}
    alike = packed.q_lengths == packed.k_lengths
    no_fewer_keys = all(k >= q for q, k in zip(packed.q_lengths, packed.k_lengths, strict=True))
    before = 0 if mask.documents is not None else case.k_len - case.q_len
    if top_left and not alike and mask.left is None and mask.right == -before:
        yield XformersCall("BlockDiagonalCausalMask", lengths, packed)
    try:
        left, right = lower.band_of_sequences(case, mask, packed)
    except NotImplementedError:
        return
    if mask.documents is None:
        yield from _padded_keys(case, packed, left, right)
    if left is None and right is None:
        yield XformersCall("BlockDiagonalMask", lengths, packed)
    elif left is None and right == 0:
        if alike:
            yield XformersCall("BlockDiagonalCausalMask", lengths, packed)
        if no_fewer_keys:
            yield XformersCall("BlockDiagonalCausalFromBottomRightMask", lengths, packed)
    elif left is not None and left >= 0 and right == 0:
        window = lengths | {"window": left + 1}
        if alike:
            yield XformersCall("BlockDiagonalCausalLocalAttentionMask", window, packed)
        if no_fewer_keys:
            yield XformersCall("BlockDiagonalCausalLocalAttentionFromBottomRightMask", window, packed)


def _padded_keys(
    case: Case, packed: lower.Sequences, left: int | None, right: int | None
) -> Iterator[XformersCall]:
    """One sequence per batch row, with its keys unpacked: those in use, then the others."""
    lengths = {"q_lengths": packed.q_lengths, "k_lengths": packed.k_lengths, "kv_padding": case.k_len}
    if left is None and right is None:
        yield XformersCall("BlockDiagonalPaddedKeysMask", lengths, packed)
    elif left is None and right == 0:
        yield XformersCall("BlockDiagonalCausalWithOffsetPaddedKeysMask", lengths, packed)
    elif left is not None and left >= 0 and right == 0:
        window = lengths | {"window": left + 1}
        yield XformersCall("BlockDiagonalCausalLocalAttentionPaddedKeysMask", window, packed)
    if (left is not None or right is not None) and (left or 0) >= 0 and (right is None or right >= 0):
        whole = case.q_len + case.k_len
        ends = {
            "window_left": whole if left is None else left,
            "window_right": whole if right is None else right,
        }
        yield XformersCall("BlockDiagonalLocalAttentionPaddedKeysMask", lengths | ends, packed)


def task_of(case: Case, call: XformersCall, operator: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The task and its arrays, as _program_torch.py reads them."""
    task = {
        "call": "_call_xformers.py",
        "library": "xformers",
        "operator": operator,
        "bias": call.bias,
        "numbers": call.numbers,
        "gradients": lower.gradients_of_scores(case),
    }
    arrays: dict[str, tuple[str, np.ndarray]] = {}
    if call.sequences is not None:
        arrays |= packed_arrays(call.sequences)
        if not call.packs_keys:
            arrays.pop("k_tokens", None)
    if call.bias == "Tensor":
        if not case.mask.is_always:
            arrays["mask"] = ("bool", lower.dense_mask(case))
        slopes = lower.alibi_slopes(case)
        if slopes is not None:
            arrays["alibi_slopes"] = ("fp32", np.array(slopes, np.float32))
        arrays |= lower.relative_index(case)
    return task, arrays
