"""The keys of each query as ranges: union, intersection and complement of range sets, row by row.

A span set is a pair (starts, ends) of int64 arrays [R, S]: for each of R query rows, S disjoint half-open
key ranges in rising order, of which some may be empty (start == end).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Spans = tuple[Ints, Ints]

FEW_PRODUCTS = 16  # an intersection takes up to so many pairs of ranges; beyond, it goes through complements


def one_span(rows: Ints, start: Ints | int, end: Ints | int, k_len: int) -> Spans:
    """One range per row, clipped to [0, k_len); empty if it ends before it starts."""
    first = np.clip(np.broadcast_to(np.asarray(start, dtype=np.int64), rows.shape), 0, k_len)
    last = np.clip(np.broadcast_to(np.asarray(end, dtype=np.int64), rows.shape), 0, k_len)
    return first[:, None], np.maximum(first, last)[:, None]


def complement(spans: Spans, k_len: int) -> Spans:
    """The keys of [0, k_len) outside the set, as one range more than the set has."""
    starts, ends = spans
    edge = np.zeros((starts.shape[0], 1), dtype=np.int64)
    return np.hstack([edge, ends]), np.hstack([starts, edge + k_len])


def union(a: Spans, b: Spans) -> Spans:
    """The keys in either set, as at most |a| + |b| ranges per row; touching ranges are not joined."""
    starts, ends = _in_order(np.hstack([a[0], b[0]]), np.hstack([a[1], b[1]]))
    reach = np.maximum.accumulate(ends, axis=1)
    starts[:, 1:] = np.maximum(starts[:, 1:], reach[:, :-1])
    return starts, np.maximum(starts, ends)


def intersection(a: Spans, b: Spans, k_len: int) -> Spans:
    """The keys in both sets, as at most |a| + |b| - 1 ranges per row."""
    most = a[0].shape[1] + b[0].shape[1] - 1
    if a[0].shape[1] * b[0].shape[1] > FEW_PRODUCTS:
        outside = union(complement(a, k_len), complement(b, k_len))
        starts, ends = complement(outside, k_len)
    else:
        rows = a[0].shape[0]
        starts = np.maximum(a[0][:, :, None], b[0][:, None, :]).reshape(rows, -1)
        ends = np.minimum(a[1][:, :, None], b[1][:, None, :]).reshape(rows, -1)
        ends = np.maximum(starts, ends)
        if starts.shape[1] == 1:
            return starts, ends
    # Move empty ranges to the end of the row, and cut them off there.
    empty = starts >= ends
    starts, ends = np.where(empty, k_len, starts), np.where(empty, k_len, ends)
    starts, ends = _in_order(starts, ends)
    return starts[:, :most], ends[:, :most]


def runs(allowed: NDArray[np.bool_]) -> Spans:
    """The maximal runs of True in each row of [R, K], with as many columns as the longest row has runs."""
    rows = allowed.shape[0]
    padded = np.zeros((rows, allowed.shape[1] + 2), dtype=np.int8)
    padded[:, 1:-1] = allowed
    change = np.diff(padded, axis=1)
    row, start = np.nonzero(change == 1)
    end = np.nonzero(change == -1)[1]
    per_row = np.bincount(row, minlength=rows)
    within = np.arange(row.size) - np.repeat(np.cumsum(per_row) - per_row, per_row)
    shape = (rows, max(1, int(per_row.max(initial=0))))
    starts, ends = np.full(shape, allowed.shape[1]), np.full(shape, allowed.shape[1])
    starts[row, within] = start
    ends[row, within] = end
    return starts, ends


def dense(spans: Spans, k_len: int) -> NDArray[np.bool_]:
    """The set as a boolean matrix [R, K]; for tests and small problems."""
    starts, ends = spans
    change = np.zeros((starts.shape[0], k_len + 1), dtype=np.int64)
    row = np.broadcast_to(np.arange(starts.shape[0])[:, None], starts.shape)
    np.add.at(change, (row, starts), 1)
    np.add.at(change, (row, ends), -1)
    return np.cumsum(change, axis=1)[:, :-1] > 0


def _in_order(starts: Ints, ends: Ints) -> Spans:
    # One sort of both: a start and an end share a 64-bit word, since lengths are below 2^30.
    packed = np.sort((starts << 32) | ends, axis=1)
    return packed >> 32, packed & 0xFFFFFFFF
