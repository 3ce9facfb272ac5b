"""Masks in the terms of libraries: a band, key lengths and documents; any other mask is a dense matrix.

Everything here is a plain value. No library is imported, so that every lowering is tested without one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from attnbench.problem import (
    ALiBi,
    And,
    Bias,
    Case,
    Causal,
    Documents,
    Full,
    Mask,
    Padding,
    RelativeBias,
    SlidingWindow,
)

Ints = np.ndarray


@dataclass(frozen=True)
class Parts:
    """A mask as `-left <= j - p <= right` (None: unlimited), key lengths and documents per batch row.

    A negative `right` is top-left alignment with fewer queries than keys.
    """

    left: int | None = None
    right: int | None = None
    key_lengths: tuple[int, ...] | None = None
    documents: tuple[tuple[int, ...], ...] | None = None

    @property
    def is_full(self) -> bool:
        return self == Parts()


def _least(a: int | None, b: int | None) -> int | None:
    return min((x for x in (a, b) if x is not None), default=None)


def parts(case: Case) -> Parts | None:
    """The mask in parts, or None if only a dense matrix says it."""
    mask = case.mask.simplified()
    whole = Parts()
    for term in mask.terms if isinstance(mask, And) else (mask,):
        joined = _with(whole, term, case)
        if joined is None:
            return None
        whole = joined
    return whole


def _with(mask: Parts, term: Mask, case: Case) -> Parts | None:
    left, right = mask.left, mask.right
    if isinstance(term, Full):
        return mask
    if isinstance(term, Causal):
        # j <= i is j - p <= q_len - k_len.
        reach = 0 if term.align == "bottom_right" else case.q_len - case.k_len
        return Parts(left, _least(right, reach), mask.key_lengths, mask.documents)
    if isinstance(term, SlidingWindow):
        return Parts(_least(left, term.left), _least(right, term.right), mask.key_lengths, mask.documents)
    if isinstance(term, Padding) and (term.side == "right" or set(term.lengths) == {case.k_len}):
        before = mask.key_lengths or (case.k_len,) * case.batch
        kept = tuple(min(a, b) for a, b in zip(before, term.lengths, strict=True))
        return Parts(left, right, kept, mask.documents)
    if isinstance(term, Documents) and mask.documents is None:
        lists = term.lists if len(term.lists) == case.batch else term.lists * case.batch
        return Parts(left, right, mask.key_lengths, lists)
    return None


@dataclass(frozen=True)
class Sequences:
    """Packed sequences: the first token and the length of each, for queries and keys, in tokens of [B * S].

    Only these tokens take part; `covers_q` and `covers_k` say whether they are all.
    """

    q_starts: tuple[int, ...]
    q_lengths: tuple[int, ...]
    k_starts: tuple[int, ...]
    k_lengths: tuple[int, ...]
    covers_q: bool
    covers_k: bool

    @staticmethod
    def _tokens(starts: tuple[int, ...], lengths: tuple[int, ...]) -> Ints:
        pieces = [
            np.arange(start, start + length, dtype=np.int64)
            for start, length in zip(starts, lengths, strict=True)
        ]
        return np.concatenate([np.empty(0, np.int64), *pieces])

    @property
    def q_tokens(self) -> Ints:
        """The tokens of the packed queries, int64 [T], as indices into [B * Q]."""
        return self._tokens(self.q_starts, self.q_lengths)

    @property
    def k_tokens(self) -> Ints:
        return self._tokens(self.k_starts, self.k_lengths)

    @property
    def cu_seqlens_q(self) -> Ints:
        """Cumulative lengths, int32 [sequences + 1]."""
        return np.cumsum([0, *self.q_lengths], dtype=np.int64).astype(np.int32)

    @property
    def cu_seqlens_k(self) -> Ints:
        return np.cumsum([0, *self.k_lengths], dtype=np.int64).astype(np.int32)


def sequences(case: Case, mask: Parts) -> Sequences:
    """The packed form of documents and key lengths, without the sequences that have no query."""
    rows: list[tuple[int, int, int, int]] = []
    for b in range(case.batch):
        kept = case.k_len if mask.key_lengths is None else mask.key_lengths[b]
        if mask.documents is None:
            rows.append((b * case.q_len, case.q_len, b * case.k_len, kept))
            continue
        start = 0
        for length in mask.documents[b]:
            keys = min(max(kept - start, 0), length)
            rows.append((b * case.q_len + start, length, b * case.k_len + start, keys))
            start += length
    rows = [row for row in rows if row[1]]
    q_starts, q_lengths, k_starts, k_lengths = (
        (tuple(column) for column in zip(*rows, strict=True)) if rows else ((),) * 4
    )
    covers_q = sum(q_lengths) == case.batch * case.q_len
    covers_k = sum(k_lengths) == case.batch * case.k_len
    return Sequences(q_starts, q_lengths, k_starts, k_lengths, covers_q, covers_k)


def band_of_sequences(case: Case, mask: Parts, packed: Sequences) -> tuple[int | None, int | None]:
    """The band relative to each sequence's last query and last key.

    Libraries align a band at the end of each sequence: `-left <= j - (i + keys - queries) <= right`, with i and j
    counted in the sequence. NotImplementedError if the sequences would need different bands.
    """
    # Within a sequence both counts start together, except that a padded row's first query is at p = k_len - q_len.
    before = 0 if mask.documents is not None else case.k_len - case.q_len
    pairs = zip(packed.q_lengths, packed.k_lengths, strict=True)
    shifts = {before - (keys - queries) for queries, keys in pairs if keys}
    if not shifts or (mask.left is None and mask.right is None):
        return mask.left, mask.right
    if len(shifts) > 1:
        raise NotImplementedError(
            f"has no {case.mask}: its band would lie differently in sequences of different lengths"
        )
    shift = shifts.pop()
    left = None if mask.left is None else mask.left - shift
    right = None if mask.right is None else mask.right + shift
    return left, right


def alibi_slopes(case: Case) -> list[float] | None:
    """One slope per query head, or None."""
    return next((list(s.slopes_for(case.q_heads)) for s in case.scores if isinstance(s, ALiBi)), None)


def gradients_of_scores(case: Case) -> dict[str, str]:
    """The name of each gradient, by the kind of its score change."""
    return {s.kind: s.gradient for s in case.scores if s.gradient is not None}


def has_bias(case: Case) -> bool:
    return any(isinstance(s, Bias | RelativeBias) for s in case.scores)


def dense_mask(case: Case) -> Ints:
    """True where a query may attend a key: bool [B|1, H|1, Q, K]."""
    return case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len).numpy()


def relative_index(case: Case) -> dict[str, tuple[str, Ints]]:
    """The table entry of each pair, int32 [Q, K], if the case has a relative bias."""
    bias = next((s for s in case.scores if isinstance(s, RelativeBias)), None)
    if bias is None:
        return {}
    return {"relative_index": ("int32", bias.index(case.extent).numpy().astype(np.int32))}


def refuse_what_flash2_widens(
    case: Case, q_lengths: tuple[int, ...], k_lengths: tuple[int, ...], left: int | None, right: int | None
) -> None:
    """NotImplementedError for the windows that FlashAttention-2 changes if there are more queries than keys.

    Its flash_api.cpp (and torch's copy) takes a right window of the longest k_len or more as unlimited, and an
    unlimited right window beside a left one as the longest k_len. Both keep the mask only up to so many queries.
    """
    longest = max(k_lengths, default=0)
    kept_left = None if left is None or left >= longest else left
    kept_right = None if right is None or right >= longest else right
    if kept_right is None and kept_left is not None:
        kept_right = longest
    reaches = [float("inf") if reach is None else reach for reach in (right, kept_right)]
    if reaches[0] == reaches[1]:
        return
    pairs = zip(q_lengths, k_lengths, strict=True)
    if any(min(reaches) < queries - 1 for queries, keys in pairs if keys):
        raise NotImplementedError(
            f"has no {case.mask} with so many more queries than keys: its source changes the right window"
        )
