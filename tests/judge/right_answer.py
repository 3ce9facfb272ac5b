"""Inputs of a small case and a right answer under FLASH, independent of every backend."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnbench.backend import Gradients, Output
from attnbench.problem import Case, Causal, Inputs, make_inputs


def flash(inputs: Inputs) -> tuple[Output, Gradients | None]:
    """A right answer under FLASH, apart from every backend: float32 throughout, P, dS and results rounded."""
    case, dtype = inputs.case, inputs.q.dtype
    group = case.group
    q = inputs.q.float()
    k, v = (x.float().repeat_interleave(group, 1) for x in (inputs.k, inputs.v))
    s = (q @ k.transpose(-1, -2)) * case.softmax_scale
    allowed = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len)
    s = s.masked_fill(~allowed, -math.inf)
    row_max = s.amax(-1, keepdim=True).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    p = torch.exp(s - row_max)
    total = p.sum(-1, keepdim=True)
    lse = (row_max + torch.log(total))[..., 0]
    out = (p.to(dtype).float() @ v / total.clamp_min(torch.finfo(torch.float32).tiny)).to(dtype)
    if inputs.dout is None:
        return Output(out, lse), None
    dout = inputs.dout.float()
    p = torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    delta = (dout * out.float()).sum(-1, keepdim=True)
    ds = (p * (dout @ v.transpose(-1, -2) - delta)).to(dtype).float()

    def of_key_heads(x: Tensor) -> Tensor:
        return x.unflatten(1, (case.kv_heads, group)).sum(2).to(dtype)

    dq = (ds @ k * case.softmax_scale).to(dtype)
    dk = of_key_heads(ds.transpose(-1, -2) @ q * case.softmax_scale)
    dv = of_key_heads(p.to(dtype).float().transpose(-1, -2) @ dout)
    return Output(out, lse), Gradients(dq, dk, dv)


def inputs_of(a_case: Callable[..., Case], distribution: str = "randn", **changes: Any) -> Inputs:
    sizes = {"q_len": 65, "k_len": 97, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "mask": Causal()}
    return make_inputs(a_case(**({"direction": "fwd_bwd"} | sizes | changes)), 1, distribution=distribution)
