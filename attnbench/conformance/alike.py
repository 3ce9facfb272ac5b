"""Inputs that differ in two rows of one tensor, and agree in shape, place, sum, mean, norm, first and last elements.

A cache keyed by a part of the content, or by the content of some tensors, takes them for the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from torch import Tensor

from attnbench.problem import Inputs

STEP = 16  # numbers are rounded to 1 / STEP, so that float32 sums are exact in any order
# What must change with the rows of a tensor.
DEPENDS_ON = {
    "q": ("out", "dq", "dk", "dv"),
    "k": ("out", "dq", "dk", "dv"),
    "v": ("out", "dq", "dk"),
    "dout": ("dq", "dk", "dv"),
}


def coarse(inputs: Inputs) -> Inputs:
    """The inputs rounded to few bits: exact in every dtype, and so are their sums."""
    rounded = {
        name: (x.float() * STEP).round().div(STEP).to(x.dtype)
        for name, x in inputs.tensors.items()
        if name in DEPENDS_ON
    }
    return replace(inputs, seed=-1, **rounded)  # type: ignore[arg-type]


def rows_exchanged(name: str, x: Tensor, allowed: Tensor) -> Tensor | None:
    """x [B, heads, S, dim] with two inner rows of the last head exchanged; None if the mask leaves too few to do so.

    `allowed` [B, H, Q, K]; the rows are ones that the mask lets count.
    """
    counts = allowed[-1, -1].any(0 if name in ("k", "v") else 1)  # [S]
    inner = [i for i in range(1, x.shape[2] - 1) if bool(counts[i])]
    # Odd places: a key made of every second, fourth, ... row does not see them.
    inner = [i for i in inner if i % 2] if sum(i % 2 for i in inner) > 1 else inner
    if len(inner) < 2:
        return None
    i, j = inner[len(inner) // 3], inner[-1 - len(inner) // 4]
    if i == j:
        i, j = inner[0], inner[-1]
    other = x.clone()
    other[-1, -1, i], other[-1, -1, j] = x[-1, -1, j], x[-1, -1, i]
    return other


def faults_on_alike_inputs(
    run: Callable[[], Mapping[str, Tensor]], held: Inputs, others: Inputs
) -> list[str]:
    """Faults of `run`, which computes out and gradients from what `held` holds, on inputs that are nearly alike.

    It writes `others`, rounded, into the storage of `held`, and then exchanges rows of one tensor after another.
    """
    case = held.case
    allowed = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len)
    for name, x in coarse(others).tensors.items():
        held.tensors[name].copy_(x)
    before = {name: x.clone() for name, x in run().items()}
    for name, x in held.tensors.items():
        exchanged = rows_exchanged(name, x, allowed) if name in DEPENDS_ON else None
        if exchanged is None:
            continue
        x.copy_(exchanged)
        after = {name: y.clone() for name, y in run().items()}
        kept = [of for of in DEPENDS_ON[name] if of in after and before[of].equal(after[of])]
        if kept:
            key = f"first elements, a sum or mean, or other tensors than {name}"
            words = f"no bit of {' and '.join(kept)} changes with two rows of {name}"
            return [f"{words}: an answer is kept by a part of the content ({key})"]
        before = after
    return []
