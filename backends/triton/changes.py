"""The score changes of a case as tensors and arguments of the kernels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attnbench.problem import ALiBi, Bias, Case, Extent, RelativeBias, Score, Sink, Softcap, parse_call

from .logits import ChangeArguments


@dataclass(frozen=True, eq=False)
class Changes:
    """The tensors of the score changes as kernels take them; None: the case has no such change.

    bias [B|1, H|1, Q|1, K|1]; relative [H, entries of separable offsets]: the pair (i, j) reads
    relative[h, row[i] - column[j]]; slopes [H] float32; sink [H].
    """

    softcap: float | None
    slopes: Tensor | None
    bias: Tensor | None
    relative: Tensor | None
    row: Tensor | None
    column: Tensor | None
    sink: Tensor | None
    entry: Tensor | None = None  # int64 [offsets]: the table's entry of each offset; None: the offset itself
    entries: int = 0  # of the table, for each head

    @property
    def are_none(self) -> bool:
        """Whether the logits are the scaled products and nothing else (a sink changes no logit)."""
        return all(x is None for x in (self.softcap, self.slopes, self.bias, self.relative))

    @property
    def arguments(self) -> ChangeArguments:
        """As the kernels take them."""
        strides: tuple[int, ...] = (0, 0, 0, 0)
        if self.bias is not None:
            strides = tuple(
                s if n > 1 else 0 for s, n in zip(self.bias.stride(), self.bias.shape, strict=True)
            )
        stride = 0 if self.relative is None else self.relative.stride(0)
        return ChangeArguments(
            self.softcap, self.slopes, self.bias, strides, self.relative, stride, self.row, self.column
        )


@dataclass(frozen=True, eq=False)
class Offsets:
    """The rule of a relative bias made separable: pair (i, j) reads entry[row[i] - column[j]] of the table."""

    row: Tensor  # int32 [Q]
    column: Tensor  # int32 [K]
    entry: Tensor | None  # int64 [offsets], or None if the offset is the entry


def offsets_of(rule: RelativeBias, extent: Extent, device: torch.device) -> Offsets:
    """Split a rule's index over queries and keys; NotImplementedError for an unknown rule."""
    name, args = parse_call(rule.rule)
    i = torch.arange(extent.q_len, dtype=torch.int32, device=device)
    j = torch.arange(extent.k_len, dtype=torch.int32, device=device)
    if name == "grid":
        width, line = int(args[1]), 2 * int(args[1]) - 1
        corner = (int(args[0]) - 1) * line + width - 1
        return Offsets(i // width * line + i % width + corner, j // width * line + j % width, None)
    if name == "t5":
        # The entry follows from j - p alone: offset 0 is the furthest key behind, i = q_len - 1 and j = 0.
        length = max(extent.q_len, extent.k_len)
        behind = rule.index(Extent(1, 1, 1, length))[0]  # j - p = -(length - 1) .. 0
        ahead = rule.index(Extent(1, 1, length, 1))[:, 0].flip(0)  # j - p = 0 .. length - 1
        furthest = extent.k_len - 1
        whole = torch.cat([behind[length - 1 - furthest :], ahead[1 : extent.q_len]])
        return Offsets(extent.q_len - 1 - i, -j, whole.to(device))
    raise NotImplementedError(f"the Triton kernel does not know the relative bias rule {rule.rule}")


@dataclass(frozen=True, eq=False)
class Fixed:
    """What score changes need on the device beside their tensors; made once, so that a call copies nothing."""

    slopes: Tensor | None = None
    offsets: Offsets | None = None


def fix(case: Case, device: torch.device) -> Fixed:
    """ALiBi's slopes and the index of a relative bias on the device; NotImplementedError for an unknown rule."""
    slopes, offsets = None, None
    for score in case.scores:
        if isinstance(score, ALiBi):
            slopes = torch.tensor(score.slopes_for(case.q_heads), dtype=torch.float32, device=device)
        elif isinstance(score, RelativeBias):
            offsets = offsets_of(score, case.extent, device)
    return Fixed(slopes, offsets)


def bind(fixed: Fixed, scores: tuple[Score, ...]) -> Changes:
    """Score changes with their tensors, as the kernels take them."""
    fields: dict[str, Any] = dict.fromkeys(("softcap", "slopes", "bias", "relative", "row", "column", "sink"))
    for score in scores:
        if isinstance(score, Softcap):
            fields["softcap"] = score.cap
        elif isinstance(score, ALiBi):
            fields["slopes"] = fixed.slopes
        elif isinstance(score, Bias):
            fields["bias"] = score.tensor
        elif isinstance(score, RelativeBias):
            offsets = fixed.offsets
            assert offsets is not None
            assert score.tensor is not None
            table = score.tensor if offsets.entry is None else score.tensor[:, offsets.entry]
            fields |= {"relative": table.contiguous(), "row": offsets.row, "column": offsets.column}
            fields |= {"entry": offsets.entry, "entries": score.entries}
        elif isinstance(score, Sink):
            fields["sink"] = score.tensor
        else:
            raise NotImplementedError(f"the Triton kernel does not know {score}")
    return Changes(**fields)
