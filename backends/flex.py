"""torch's FlexAttention, compiled, with block masks built from the mask's spans and predicate."""

from __future__ import annotations

import shutil
from collections.abc import Callable

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from attnbench.backend import AutogradPrepared, Backend, Capabilities, Prepared, Refusal
from attnbench.problem import FULL, PARTIAL, ALiBi, Bias, Case, Inputs, Mask, RelativeBias, Score, Softcap

BLOCK = 128
COMPILERS = ("g++", "clang++", "c++")

# By default a backward through a compiled graph frees its buffers; timing one backward repeatedly needs them.
torch._functorch.config.donated_buffer = False


def block_mask(mask: Mask, case: Case, device: torch.device) -> BlockMask:
    """The block map as FlexAttention's BlockMask: skips empty blocks, runs no predicate in full ones."""
    blocks = mask.block_map(case.extent, BLOCK, BLOCK)
    kinds = torch.from_numpy(blocks.kinds)  # [B|1, H|1, nq, nk]

    def listed(kind: int) -> tuple[Tensor, Tensor]:
        here = kinds == kind
        count = here.sum(dim=-1, dtype=torch.int32)
        order = torch.argsort(here.to(torch.int8), dim=-1, descending=True, stable=True).to(torch.int32)
        return count.to(device), order.contiguous().to(device)

    partial, full = listed(PARTIAL), listed(FULL)
    return BlockMask.from_kv_blocks(
        *partial,
        *full,
        BLOCK_SIZE=BLOCK,
        mask_mod=mask.predicate(case.extent, device=device),
        seq_lengths=(case.q_len, case.k_len),
    )


def constants(scores: tuple[Score, ...], case: Case, device: torch.device) -> dict[str, Tensor]:
    """The tensors of score changes that no gradient goes to, by the change's kind: made once, not in a call."""
    made = {}
    for score in scores:
        if isinstance(score, ALiBi):
            made[score.kind] = torch.tensor(score.slopes_for(case.q_heads), device=device)  # [H]
        elif isinstance(score, RelativeBias):
            made[score.kind] = score.index(case.extent).to(device)  # [Q, K]
    return made


def score_mod(
    scores: tuple[Score, ...], case: Case, fixed: dict[str, Tensor]
) -> Callable[..., Tensor] | None:
    """The score changes as FlexAttention's score_mod, in canonical order, or None if there are none.

    `fixed` are their `constants`.
    """
    steps: list[Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = []
    shift = case.k_len - case.q_len
    for score in scores:
        if isinstance(score, Softcap):
            steps.append(lambda s, b, h, q, k, cap=score.cap: cap * torch.tanh(s / cap))  # type: ignore[misc]
        elif isinstance(score, ALiBi):
            slopes = fixed[score.kind]
            steps.append(lambda s, b, h, q, k, slopes=slopes: s - slopes[h] * (q + shift - k).abs())  # type: ignore[misc]
        elif isinstance(score, RelativeBias):
            index = fixed[score.kind]
            table = score.tensor  # [H, entries]
            steps.append(lambda s, b, h, q, k, table=table, index=index: s + table[h, index[q, k]])  # type: ignore[misc]
        elif isinstance(score, Bias):
            assert score.tensor is not None
            steps.append(_bias_step(score.tensor))
    if not steps:
        return None

    def changed(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        for step in steps:
            s = step(s, b, h, q, k)
        return s

    return changed


def _bias_step(bias: Tensor) -> Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]:
    over_b, over_h, over_q, over_k = (int(size > 1) for size in bias.shape)

    def step(s: Tensor, b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return s + bias[b * over_b, h * over_h, q * over_q, k * over_k]

    return step


class Flex(Backend):
    capabilities = Capabilities(
        head_dims=(16, 256, 1),
        scores=frozenset({"softcap", "alibi", "bias", "relative"}),
        compiles=True,
        source="https://docs.pytorch.org/docs/stable/nn.attention.flex_attention.html",
    )

    def version(self) -> str:
        return f"torch {torch.__version__}"

    def refuses(self, case: Case, device: str = "cpu") -> Refusal | None:
        refusal = super().refuses(case, device)
        if refusal is not None or device.startswith("cuda"):
            return refusal
        if case.needs_backward:
            return Refusal("FlexAttention has no backward on a CPU")
        if not any(shutil.which(name) for name in COMPILERS):
            return Refusal("compiling for a CPU needs a C++ compiler: install g++ (attnbench doctor)")
        return None

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        # A new case is a new graph: no dynamic shapes or guards of the last one get into its code.
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, fullgraph=True, dynamic=False)
        simple = case.mask.simplified()
        needs_mask = simple.kinds != {"full"} or simple.is_combined

        def compute(q: Tensor, k: Tensor, v: Tensor, scores: tuple[Score, ...]) -> Tensor:
            changed = score_mod(scores, case, fixed) if case.needs_backward else unchanging
            return compiled(
                q,
                k,
                v,
                score_mod=changed,
                block_mask=mask,
                scale=case.softmax_scale,
                enable_gqa=case.group != 1,
            )

        prepared = AutogradPrepared(case, inputs, compute, kernel="flex_attention, compiled", reusable=True)
        with prepared.step("mask"):
            mask = block_mask(case.mask, case, inputs.device) if needs_mask else None
        fixed = constants(inputs.scores, case, inputs.device)
        unchanging = score_mod(inputs.scores, case, fixed)
        with prepared.step("compile"):
            prepared.forward()
        return prepared


backend = Flex()
