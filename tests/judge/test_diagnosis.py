"""Is the plainest cause of an error named before a clever one that explains it as well?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.judge import check
from attnbench.problem import Case, Causal


def test_an_output_of_zeros_is_called_that_first() -> None:
    def zeros(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return torch.zeros(*q.shape[:3], v.shape[3], dtype=q.dtype)

    case = Case(q_len=64, k_len=64, q_heads=2, head_dim=32, dtype="fp32", mask=Causal())
    (failure,) = check(zeros, case=case).failures
    assert failure.causes[0] == "the output is all zeros"
    assert len(failure.causes) > 1  # a tile of keys left out explains it as well
