"""Masking by multiplication: a 0/1 matrix after exp, as older code writes it.

Older code takes the row maximum over all keys, masked ones too, and so loses rows whose permitted scores lie far
below a masked one. Here the maximum is over permitted keys, and what lies above it (masked keys only) is set to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Capabilities, KnownDefect
from attnbench.problem import Case

from ._dense import repeat_heads
from ._dense_backend import DenseBackend, DenseCase


def _many_keys_in_fp16(case: Case) -> bool:
    return case.needs_backward and case.dtype == "fp16" and case.k_len > 1024


class MaskMultiply(DenseBackend):
    capabilities = Capabilities(
        contract="dense", source="the 0/1 mask of early attention code (arXiv 1409.0473, A.2.2)"
    )
    kernel = "exp times mask"
    has_dropout = True

    known_defects = dict.fromkeys(
        ("oracle:near_constant_v", "oracle:randn"),
        KnownDefect(
            reason="the gradient of weights / total holds 1 / total^2, which fp16 cannot hold over thousands of keys",
            link="docs/findings.md, a softmax written by hand",
            versions=">=2.11,<=2.15.0",
            shows=_many_keys_in_fp16,
            tensors=frozenset({"dq", "dk"}),
        ),
    )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, case: DenseCase) -> Tensor:
        k, v = repeat_heads(k, case.group), repeat_heads(v, case.group)  # [B, H, K, D], [B, H, K, Dv]
        scores = case.changed(torch.einsum("bhqd,bhkd->bhqk", q, k) * case.scale)  # [B, H, Q, K]
        seen = scores if case.allowed is None else scores.masked_fill(~case.allowed, -torch.inf)
        # The maximum only shifts the exponent: it carries no gradient.
        top = seen.detach().amax(dim=-1, keepdim=True)  # [B, H, Q, 1]
        if case.sink is not None:
            top = torch.maximum(top, case.sink.detach()[None, :, None, None].to(top.dtype))
        top = top.masked_fill(top == -torch.inf, 0.0)
        below = scores - top
        # Not clamp_max(0): its gradient at 0, where the maximum lies, is 1 up to torch 2.13 and 0 from 2.14 on.
        weights = torch.exp(below.masked_fill(below > 0, 0.0))
        if case.allowed is not None:
            weights = weights * case.allowed
        total = weights.sum(dim=-1, keepdim=True)  # [B, H, Q, 1]
        if case.sink is not None:
            total = total + torch.exp(case.sink[None, :, None, None].to(top.dtype) - top)
        # A row without keys has weights 0 and total 0: 0 / 1 is its output.
        total = total.masked_fill(total == 0, 1.0)
        return torch.einsum("bhqk,bhkd->bhqd", case.dropped(weights / total), v)  # [B, H, Q, Dv]


backend = MaskMultiply()
