"""The smallest case of a failure fails in the same way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from attnbench.backend import FunctionBackend
from attnbench.conformance.diagnosis.shrink import Smallest, fitted, run, smallest_failing
from attnbench.conformance.subject import Subject
from attnbench.problem import BlockSparse, Case, Causal, Documents, Explicit, Padding
from tests.conformance.functions import attention, with_fault


def test_masks_are_cut_to_smaller_sizes() -> None:
    table = torch.rand(2, 4, 8, 8) > 0.5
    cut = fitted(Explicit(table) & Padding((8, 3)), 1, 2, 4, 5)
    wanted = Explicit(table[:1, :2, :4, :5]) & Padding((5,))
    assert cut == wanted
    assert fitted(Documents((3, 2, 3)), 1, 1, 4, 4) == Documents((3, 1, 0))
    layout = [[[1, 0], [0, 1]], [[1, 1], [0, 1]]]
    assert fitted(BlockSparse(layout, 4), 1, 1, 8, 8) == BlockSparse(layout[:1], 4)


def test_the_smallest_case_still_fails() -> None:
    subject = Subject(FunctionBackend(with_fault(tiled=True), "tiled"))
    case = Case(batch=3, q_len=65, k_len=65, q_heads=6, kv_heads=2, head_dim=64, dtype="fp32", mask=Causal())
    smallest, distribution, observation = smallest_failing(subject, Smallest(case, "large"), "forward")
    assert observation is not None
    assert (observation.case, observation.inputs.distribution, observation.verdict.ok) == (
        smallest,
        distribution,
        False,
    )
    assert smallest.group > 1
    assert smallest.kv_heads > 1
    assert (smallest.batch, smallest.q_len) == (1, 1)


def test_a_failure_that_raises_is_not_shrunk_to_another_fault() -> None:
    def two_faults(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if q.shape[1] != k.shape[1]:
            raise RuntimeError("cannot group heads")
        return attention(q, k, v, mask, scores, scale, strict=True)

    subject = Subject(FunctionBackend(two_faults, "two faults"))
    case = Case(batch=2, q_len=65, k_len=65, q_heads=6, kv_heads=2, head_dim=32, dtype="fp32", mask=Causal())
    smallest, _, observation = smallest_failing(subject, Smallest(case, "randn"), "raises RuntimeError:")
    assert observation is None
    assert run(subject, smallest, "randn") == ("raises RuntimeError:", None)
    assert smallest.group > 1
    assert (smallest.batch, smallest.q_len, smallest.kv_heads) == (1, 1, 1)
