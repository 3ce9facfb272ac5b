"""Which changes of the backward alone have exact gradients of their own? A scale, a delta, a head not summed."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from attnbench.judge.blocks import Problem, full_precision
from attnbench.judge.hypotheses import Hypothesis
from attnbench.judge.oracle import Exact, attend
from attnbench.problem import Full, Inputs


def of_gradient(name: str, inputs: Inputs, right: Exact) -> Iterator[Hypothesis]:
    """Changes of the backward alone, and the exact gradient of each."""
    case = inputs.case
    exact = {"dq": right.dq, "dk": right.dk, "dv": right.dv}[name]
    assert exact is not None
    assert inputs.dout is not None
    scale = case.softmax_scale
    yield f"{name} is all zeros", lambda: torch.zeros_like(exact)
    if name != "dv":
        yield f"{name} lacks the scale", lambda: exact / scale
        yield f"{name} has the scale twice", lambda: exact * scale
    yield f"the sign of {name} is wrong", lambda: -exact
    parts = _pieces(inputs, right)
    wide = parts.get(name, {})
    for cause, tensor in wide.items():
        yield cause, lambda tensor=tensor: tensor  # type: ignore[misc]


def _pieces(inputs: Inputs, right: Exact) -> dict[str, dict[str, Tensor]]:
    """Gradients under one planted fault each, dense in float64 (the case is small)."""
    case = inputs.case
    with full_precision():
        problem = Problem(inputs)
        rows = attend(problem, problem.whole())
    assert rows.ds is not None
    assert rows.dp is not None
    assert rows.delta is not None
    slope = 1.0 if rows.block.slope is None else rows.block.slope
    q, k = inputs.q.double(), inputs.k.double().repeat_interleave(case.group, 1)
    dout = problem.dout(problem.whole())
    scale = problem.scale

    def by_head(x: Tensor) -> Tensor:
        return x.unflatten(1, (case.kv_heads, case.group)).sum(2)

    def of(ds: Tensor) -> tuple[Tensor, Tensor]:
        return ds @ k * scale, by_head(ds.transpose(-1, -2) @ q) * scale

    found: dict[str, dict[str, Tensor]] = {"dq": {}, "dk": {}, "dv": {}}
    unmasked = torch.exp(
        _unmasked_scores(problem) - rows.lse.masked_fill(rows.lse == -math.inf, 0.0)[..., None]
    )
    faults = {
        "delta is left out of dS": rows.p * rows.dp * slope,
        "softcap's derivative is missing": rows.ds,
        "P is not masked in the backward": unmasked * (rows.dp - rows.delta[..., None]) * slope,
        "the delta of the first row (block) is used for others": rows.p
        * (rows.dp - rows.delta[:, :, :1, None])
        * slope,
    }
    for cause, ds in faults.items():
        dq, dk = of(ds)
        found["dq"][cause], found["dk"][cause] = dq, dk
    found["dv"]["P is not masked in the backward"] = by_head(unmasked.transpose(-1, -2) @ dout)
    raw = torch.exp(rows.block.s - rows.row_max.masked_fill(rows.row_max == -math.inf, 0.0)[..., None])
    found["dv"]["P is not normalised in dv"] = by_head(raw.transpose(-1, -2) @ dout)
    if case.group > 1:
        ds_heads = ((rows.ds * slope).transpose(-1, -2) @ q * scale).unflatten(1, (case.kv_heads, case.group))
        dv_heads = (rows.p.transpose(-1, -2) @ dout).unflatten(1, (case.kv_heads, case.group))
        for name, x in (("dk", ds_heads), ("dv", dv_heads)):
            found[name][
                f"{name} of a key head is that of the last query head, not the sum of its group (GQA)"
            ] = x[:, :, -1]
            found[name][
                f"{name} of a key head is that of the first query head, not the sum of its group (GQA)"
            ] = x[:, :, 0]
            found[name][f"{name} is averaged, not summed, over the group (GQA)"] = x.mean(2)
    return found


def _unmasked_scores(problem) -> Tensor:  # type: ignore[no-untyped-def]
    full = replace(problem.inputs, case=replace(problem.case, mask=Full()))
    whole = type(problem)(full)
    return whole.block(whole.whole()).s
