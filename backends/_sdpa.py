"""torch's scaled_dot_product_attention pinned to one kernel, with what each kernel takes.

A pinned kernel that does not take a case raises inside torch; that becomes a refusal in torch's words, never another
kernel.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode

from attnbench.backend import AutogradPrepared, Backend, Capabilities, KnownDefect, Prepared, Refusal
from attnbench.errors import AttnbenchError
from attnbench.problem import Case, Causal, Inputs, Score

from ._dense import DenseScores, allowed

SOURCE = (
    "https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.scaled_dot_product_attention.html"
)


class Sdpa(Backend):
    """One kernel of SDPA. `dense_mask`: devices on which it takes a mask or bias tensor."""

    def __init__(self, kernel: SDPBackend, capabilities: Capabilities, dense_mask: frozenset[str]) -> None:
        self.kernel = kernel
        self.kernel_family = {
            SDPBackend.FLASH_ATTENTION: "flash2",
            SDPBackend.EFFICIENT_ATTENTION: "cutlass",
            SDPBackend.CUDNN_ATTENTION: "cudnn",
        }.get(kernel, "")
        self.capabilities = capabilities
        self.dense_mask = dense_mask

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        refusal = super().refuses(case, device)
        if refusal is not None:
            return refusal
        dense = self._causal_form(case, device) is None or bool(case.scores)
        if dense and device.split(":")[0] not in self.dense_mask:
            return Refusal(f"takes no mask or bias tensor on {device}, only full and causal")
        if case.needs_backward and self.kernel != SDPBackend.MATH and any(s.gradient for s in case.scores):
            return Refusal("gives no gradient for a bias (sdpa_math does)")
        if self.kernel == SDPBackend.FLASH_ATTENTION and case.softmax_scale <= 0:
            # It scales the row's maximum: under is_causal, -inf becomes NaN or +inf, and all of out is NaN.
            return Refusal(f"takes scales above 0, not {case.softmax_scale:g}")
        if device.startswith("cuda") and self.kernel == SDPBackend.FLASH_ATTENTION and case.dtype == "fp32":
            return Refusal("takes bf16 and fp16 on a GPU, not fp32")
        return None

    def _causal_form(self, case: Case, device: str) -> str | None:
        """ "full", "is_causal" (torch's is top-left), "lower_right", or None if only a dense mask says it."""
        mask = case.mask.simplified()
        if mask.kinds == {"full"} and not mask.is_combined:
            return "full"
        if isinstance(mask, Causal):
            if mask.align == "top_left" or case.q_len == case.k_len:
                return "is_causal"
            pinned = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION)
            if device.startswith("cuda") and self.kernel in pinned and case.group == 1:
                return "lower_right"
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        form = self._causal_form(case, inputs.device.type)

        def compute(q: Tensor, k: Tensor, v: Tensor, scores: tuple[Score, ...]) -> Tensor:
            mask = fixed_mask
            bias = dense.bias(scores)
            if bias is not None:
                # One tensor carries both: -inf where masked, the bias elsewhere.
                mask = bias if permitted is None else bias.masked_fill(~permitted, -torch.inf)
            with sdpa_kernel([self.kernel]):
                return F.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=mask,
                    is_causal=form == "is_causal" and bias is None,
                    scale=case.softmax_scale,
                    enable_gqa=case.group != 1,
                )

        prepared = AutogradPrepared(case, inputs, compute, reusable=True)
        with prepared.step("mask"):
            dense = DenseScores(case, inputs.device, inputs.q.dtype)
            has_bias = dense.bias(inputs.scores) is not None
            permitted = allowed(case, inputs.device) if form is None or has_bias else None
            fixed_mask = _lower_right(case) if form == "lower_right" else permitted
        with prepared.step("first_call"):
            prepared.kernel = _what_ran(self.kernel, prepared)
        return prepared


def _lower_right(case: Case) -> Tensor:
    # On a GPU only: the import costs as much as torch itself.
    from torch.nn.attention.bias import causal_lower_right

    return causal_lower_right(case.q_len, case.k_len)


FAMILY = {
    SDPBackend.MATH: ("composed operators",),
    SDPBackend.FLASH_ATTENTION: ("_scaled_dot_product_flash_attention", "_flash_attention"),
    SDPBackend.EFFICIENT_ATTENTION: ("_scaled_dot_product_efficient_attention", "_efficient_attention"),
    SDPBackend.CUDNN_ATTENTION: ("_scaled_dot_product_cudnn_attention", "_cudnn_attention"),
}


class _Operators(TorchDispatchMode):
    """Records the names of all operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.add(func.overloadpacket._qualified_op_name.removeprefix("aten::"))
        return func(*args, **(kwargs or {}))


def _what_ran(kernel: SDPBackend, prepared: Prepared) -> str:
    """The attention operator of one call; if none ran, NotImplementedError in torch's words."""
    with warnings.catch_warnings(record=True) as caught, _Operators() as operators:
        warnings.simplefilter("always")
        try:
            prepared.forward()
        except RuntimeError as error:
            if "No available kernel" in str(error) or "No viable backend" in str(error):
                reasons = [str(w.message).split(" (Triggered")[0] for w in caught]
                raise NotImplementedError("; ".join(reasons) or str(error)) from error
            raise
    ran = sorted(name for name in operators.names if "_attention" in name) or ["composed operators"]
    if not all(name.startswith(FAMILY[kernel]) for name in ran):
        raise AttnbenchError(f"pinned to {kernel.name}, but torch ran {', '.join(ran)}")
    return ", ".join(ran)


TRIED = ">=2.11,<=2.15.0"  # with 2.11.0, 2.13.0, 2.14.1 and 2.15.0
FLASH_ON_CPU = (
    "https://github.com/pytorch/pytorch/blob/v2.13.0/aten/src/ATen/native/cpu/FlashAttentionKernel.cpp"
)


def _many_keys(case: Case) -> bool:
    return case.needs_backward and case.dtype != "fp32" and case.k_len > 1024


def _many_queries(case: Case) -> bool:
    return case.needs_backward and case.dtype != "fp32" and case.q_len > 32


def _in_the_dtype(tensors: set[str], blocks: str, shows: Callable[[Case], bool]) -> KnownDefect:
    return KnownDefect(
        reason=f"torch's CPU kernel adds {' and '.join(sorted(tensors))} up over {blocks} in the inputs' dtype",
        link=FLASH_ON_CPU,
        versions=TRIED,
        shows=shows,
        devices=frozenset({"cpu"}),
        tensors=frozenset(tensors),
    )


FLASH_ON_CPU_DEFECTS = {
    "oracle:cancelling_dq": _in_the_dtype({"dq"}, "blocks of 512 keys", _many_keys),
    "oracle:sign_flipped_dout": _in_the_dtype({"dk", "dv"}, "blocks of queries", _many_queries),
}
