"""What does masking by multiplication cost? A 0/1 matrix after exp, as older code writes it.

Older code takes the row maximum over all keys, masked ones too, and so loses rows whose permitted scores lie far
below a masked one. Here the maximum is over permitted keys, and what lies above it (masked keys only) is clamped.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attnbench.backend import Backend, Capabilities, KnownDefect, Prepared
from attnbench.problem import Case, Inputs, Score

from ._dense import DensePrepared, DenseScores, repeat_heads, sink_of, softcap_of


def _many_keys_in_fp16(case: Case) -> bool:
    return case.needs_backward and case.dtype == "fp16" and case.k_len > 1024


class MaskMultiply(Backend):
    capabilities = Capabilities(
        contract="dense", source="the 0/1 mask of early attention code (arXiv 1409.0473, A.2.2)"
    )

    known_defects = {
        "oracle:near_constant_v": KnownDefect(
            reason="the gradient of weights / total holds 1 / total^2, which fp16 cannot hold over thousands of keys",
            link="docs/findings.md, a softmax written by hand",
            versions="==2.13.*",
            shows=_many_keys_in_fp16,
            tensors=frozenset({"dq", "dk"}),
        )
    }

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        return self._prepare(case, inputs, None)

    def prepare_with_dropout(self, case: Case, inputs: Inputs, keep: Tensor) -> Prepared:
        return self._prepare(case, inputs, keep)

    def _prepare(self, case: Case, inputs: Inputs, keep: Tensor | None) -> Prepared:
        def attend(
            q: Tensor,
            k: Tensor,
            v: Tensor,
            changes: tuple[Score, ...],
            permitted: Tensor | None,
            dense: DenseScores,
        ) -> Tensor:
            k, v = repeat_heads(k, case.group), repeat_heads(v, case.group)
            scores = torch.einsum("bhqd,bhkd->bhqk", q, k) * case.softmax_scale  # [B, H, Q, K]
            cap, bias, sink = softcap_of(changes), dense.bias(changes), sink_of(changes)
            if cap is not None:
                scores = cap * torch.tanh(scores / cap)
            if bias is not None:
                scores = scores + bias
            seen = scores if permitted is None else scores.masked_fill(~permitted, -torch.inf)
            # The maximum only shifts the exponent: it carries no gradient.
            top = seen.detach().amax(dim=-1, keepdim=True)  # [B, H, Q, 1]
            if sink is not None:
                top = torch.maximum(top, sink.detach()[None, :, None, None].to(top.dtype))
            top = top.masked_fill(top == -torch.inf, 0.0)
            weights = torch.exp((scores - top).clamp_max(0.0))
            if permitted is not None:
                weights = weights * permitted
            total = weights.sum(dim=-1, keepdim=True)
            if sink is not None:
                total = total + torch.exp(sink[None, :, None, None].to(top.dtype) - top)
            # A row without keys has weights 0 and total 0: 0 / 1 is its output.
            total = total.masked_fill(total == 0, 1.0)
            probabilities = weights / total
            if keep is not None:
                probabilities = probabilities * keep
            return torch.einsum("bhqk,bhkd->bhqd", probabilities, v)  # [B, H, Q, Dv]

        return DensePrepared(case, inputs, attend, kernel="exp times mask")


backend = MaskMultiply()
