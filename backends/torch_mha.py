"""torch.nn.MultiheadAttention on its own path: a whole layer with identity projections.

Layer level: the projections are identity matrices (their products are exact), so its output is comparable, but its
time includes four products of [B * S, H * D] by [H * D, H * D] that the bare kernels do not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from attnbench.backend import AutogradPrepared, Backend, Capabilities, KnownDefect, Prepared, Refusal
from attnbench.problem import Case, Full, Inputs, Score

from ._dense import DenseScores, allowed
from ._sdpa import FLASH_ON_CPU_DEFECTS


def identity_layer(case: Case, inputs: Inputs) -> torch.nn.MultiheadAttention:
    """A MultiheadAttention whose four projections are the identity, without biases, frozen."""
    width = case.q_heads * case.head_dim
    layer = torch.nn.MultiheadAttention(
        width, case.q_heads, bias=False, batch_first=True, device=inputs.device, dtype=inputs.q.dtype
    )
    eye = torch.eye(width, device=inputs.device, dtype=inputs.q.dtype)
    with torch.no_grad():
        layer.in_proj_weight.copy_(eye.repeat(3, 1))
        layer.out_proj.weight.copy_(eye)
    # In training mode without dropout: the same mathematics, on the path that has gradients.
    return layer.requires_grad_(False)


OPERATORS = {
    SDPBackend.MATH: "_scaled_dot_product_attention_math",
    SDPBackend.FLASH_ATTENTION: "_scaled_dot_product_flash_attention",
    SDPBackend.EFFICIENT_ATTENTION: "_scaled_dot_product_efficient_attention",
    SDPBackend.CUDNN_ATTENTION: "_scaled_dot_product_cudnn_attention",
}


def _shows(defect: KnownDefect) -> Callable[[Case], bool]:
    return lambda case: defect.shows(case) and not any(score.gradient for score in case.scores)


class TorchMha(Backend):
    capabilities = Capabilities(
        scores=frozenset({"alibi", "bias", "relative"}),
        gqa=False,
        unequal_v_dim=False,
        layer_level=True,
        source="https://docs.pytorch.org/docs/stable/generated/torch.nn.MultiheadAttention.html",
    )

    # On a CPU the layer runs the kernel of sdpa_flash, with its defects, except for a bias that has a gradient.
    known_defects = {
        key: replace(defect, shows=_shows(defect)) for key, defect in FLASH_ON_CPU_DEFECTS.items()
    }

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        if case.scale is not None and case.scale != case.head_dim**-0.5:
            return Refusal("takes no scale but 1 / sqrt(head_dim)")
        return super().refuses(case, device)

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        layer = identity_layer(case, inputs)

        def merged(x: Tensor) -> Tensor:
            return x.transpose(1, 2).flatten(2)  # [B, H, S, D] -> [B, S, H * D]

        def compute(q: Tensor, k: Tensor, v: Tensor, scores: tuple[Score, ...]) -> Tensor:
            mask = fixed_mask
            bias = dense.bias(scores)
            if bias is not None:
                whole = bias if permitted is None else bias.masked_fill(~permitted, -torch.inf)
                mask = whole.expand(case.batch, case.q_heads, case.q_len, case.k_len).flatten(0, 1)
            out, _ = layer(merged(q), merged(k), merged(v), attn_mask=mask, need_weights=False)
            return out.unflatten(2, (case.q_heads, case.v_dim)).transpose(1, 2)  # [B, H, Q, Dv]

        prepared = AutogradPrepared(
            case,
            inputs,
            compute,
            kernel=f"torch.nn.MultiheadAttention, identity projections, on {_chosen(case, inputs)}",
            reusable=True,
        )
        with prepared.step("mask"):
            dense = DenseScores(case, inputs.device, inputs.q.dtype)
            permitted = allowed(case, inputs.device)
            fixed_mask = None
            if permitted is not None and permitted.shape[:2] == (1, 1):
                fixed_mask = ~permitted[0, 0]  # [Q, K]; True means *not* allowed there
            elif permitted is not None:
                whole = permitted.expand(case.batch, case.q_heads, case.q_len, case.k_len)
                fixed_mask = ~whole.flatten(0, 1)  # [B * H, Q, K]
        return prepared


def _chosen(case: Case, inputs: Inputs) -> str:
    """The operator that torch chooses for such tensors inside the layer, which pins none."""
    masked = case.mask != Full() or case.scores
    mask = inputs.q.new_zeros(case.batch, case.q_heads, case.q_len, case.k_len) if masked else None
    q, k, v = (x.detach().requires_grad_(case.needs_backward) for x in (inputs.q, inputs.k, inputs.v))
    choice = SDPBackend(torch._fused_sdp_choice(q, k, v, attn_mask=mask))
    name = OPERATORS[choice]
    on_cpu = choice == SDPBackend.FLASH_ATTENTION and inputs.device.type == "cpu"
    return f"{name}_for_cpu" if on_cpu else name


backend = TorchMha()
