"""The words for a case in tables and charts, and which cases lie on one line of a chart."""

from __future__ import annotations

import re
from typing import Any

import pandas as pd

PASS_TEXT = {"fwd": "forward", "bwd": "backward"}
# The lists in these masks change with the length; without them, their cases lie on one line.
LONG_ARGUMENTS = re.compile(r"\b(padding|documents|explicit|block_sparse)\(([^()]|\([^()]*\))*\)")


def mask_family(mask: str) -> str:
    """The mask without its tables: `documents(100, 28) & causal` is `documents(…) & causal`."""
    return LONG_ARGUMENTS.sub(r"\1(…)", mask)


def heads_text(row: Any) -> str:
    """`8 heads`, or `32:8 heads` if key heads are shared."""
    return f"{row.q_heads} heads" if row.q_heads == row.kv_heads else f"{row.q_heads}:{row.kv_heads} heads"


def dims_text(row: Any) -> str:
    """`d64`, or `d192:128` if values have another dim."""
    return f"d{row.head_dim}" if row.head_dim == row.v_dim else f"d{row.head_dim}:{row.v_dim}"


def length_text(row: Any) -> str:
    """`2048`, or `1 x 2048` (queries x keys)."""
    return f"{row.q_len}" if row.q_len == row.k_len else f"{row.q_len} x {row.k_len}"


def unlike_lengths_text(row: Any) -> str:
    """`1 query` or `64 keys`, whichever are fewer; empty if queries and keys are as many."""
    if row.q_len == row.k_len:
        return ""
    if row.q_len < row.k_len:
        return "1 query" if row.q_len == 1 else f"{row.q_len} queries"
    return "1 key" if row.k_len == 1 else f"{row.k_len} keys"


def direction_text(direction: str) -> str:
    """`forward`, or `forward + backward`."""
    return {"fwd": "forward", "fwd_bwd": "forward + backward"}.get(direction, direction)


def shape_text(row: Any) -> str:
    """What is fixed along a line, but for unequal lengths: batch, heads, dims, dtype, scores, layout."""
    parts = [f"batch {row.batch}"] if row.batch != 1 else []
    parts += [heads_text(row), dims_text(row), row.dtype]
    parts += [row.scores] if row.scores else []
    parts += [row.layout] if row.layout not in ("", "bhsd") else []
    return ", ".join(parts)


def case_text(row: Any) -> str:
    """One case in words: `causal, 2048, 8 heads, d64, fp32, forward`."""
    return ", ".join(
        [mask_family(row.mask), length_text(row), shape_text(row), direction_text(row.direction)]
    )


def with_families(table: pd.DataFrame) -> pd.DataFrame:
    """The frame with `family` (mask without tables), `shape` (what else is fixed on a line) and `length` (tokens).

    `length` is the longer of q_len and k_len. If two cases would share a point, the whole mask tells them apart.
    """
    if table.empty:
        return table.assign(
            family=pd.Series(dtype="str"), shape=pd.Series(dtype="str"), length=pd.Series(dtype="Int64")
        )
    table = table.assign(
        family=table["mask"].map(mask_family),
        shape=[_shape(row) for row in table.itertuples()],
        length=table[["q_len", "k_len"]].max(axis=1),
    )
    point = ["family", "shape", "direction", "length"]
    crowded = table.groupby(point, dropna=False)["case"].transform("nunique") > 1
    table.loc[crowded, "family"] = table.loc[crowded, "mask"].where(
        table.loc[crowded].groupby([*point[1:], "mask"], dropna=False)["case"].transform("nunique") == 1,
        table.loc[crowded, "case"],
    )
    return table


def _shape(row: Any) -> str:
    return ", ".join(part for part in (shape_text(row), unlike_lengths_text(row)) if part)
