"""The pairs of masks of a case, and the places of its queries and keys."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.problem import Case, Mask


def pairs_of(mask: Mask, case: Case, device: torch.device) -> Tensor:
    """The mask's pairs, bool [B, H, Q, K]."""
    made = mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len, device=device)
    return made.expand(case.batch, case.q_heads, case.q_len, case.k_len)


class Places:
    """Queries i [Q, 1], their own places among the keys p [Q, 1], and keys j [K] of a case."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        self.i = torch.arange(case.q_len, device=device)[:, None]
        self.j = torch.arange(case.k_len, device=device)
        self.p = self.i + case.k_len - case.q_len

    def of(self, mask: Mask) -> Callable[[], Tensor]:
        return lambda: pairs_of(mask, self.case, self.device)

    def where(self, pairs: Tensor) -> Callable[[], Tensor]:
        case = self.case
        return lambda: pairs.expand(case.batch, case.q_heads, case.q_len, case.k_len)
