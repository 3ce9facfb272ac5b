"""Bugs planted in the oracle: each changes the answer of some problem."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from attnbench.judge import oracle
from attnbench.judge import scores as blocks
from attnbench.judge.oracle import exact_attention
from attnbench.problem import ALiBi
from tests.judge.oracle_problems import PROBLEMS, dense_answer, differing, named


def _shifted_allowed(self: blocks.Problem, part: blocks.Part) -> Tensor:
    return _allowed(self, replace(part, columns=(part.columns + 1).clamp_max(self.case.k_len - 1)))


def _probabilities_in_base_two(s: Tensor, lse: Tensor) -> Tensor:
    return torch.exp2(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])


def _float32_softmax(s: Tensor, lse: Tensor) -> Tensor:
    return _probabilities(s.float(), lse.float()).double()


def _without_sink(s: Tensor, sink: Tensor | None) -> tuple[Tensor, Tensor]:
    return _log_sum_exp(s, None)


def _no_delta(problem: blocks.Problem, part: blocks.Part, with_dq: bool = True) -> oracle.Rows:
    rows = _attend(problem, part, with_dq)
    return rows if rows.delta is None else replace(rows, delta=torch.zeros_like(rows.delta))


def _dq_unscaled(problem: blocks.Problem, part: blocks.Part, with_dq: bool = True) -> oracle.Rows:
    rows = _attend(problem, part, with_dq)
    return rows if rows.dq is None else replace(rows, dq=rows.dq / problem.scale)


def _no_slope(self: blocks.Problem, part: blocks.Part) -> blocks.Block:
    return replace(_block(self, part), slope=None)


def _heads_tiled(self: blocks.Problem, kv_heads: Tensor) -> Tensor:
    step = self.case.kv_heads
    return (kv_heads[:, None] + torch.arange(self.case.group) * step).flatten()


def _alibi_doubled(alibi: ALiBi, heads: int) -> list[float]:
    return [2 * s for s in _slopes(alibi, heads)]


def _table_transposed(rule: str, rows: Tensor, columns: Tensor, q_len: int, k_len: int) -> Tensor:
    return _relative_index(rule, columns, rows, k_len, q_len).T


_allowed, _block = blocks.Problem.allowed, blocks.Problem.block
_probabilities, _log_sum_exp, _attend = oracle.probabilities, oracle.log_sum_exp, oracle.attend
_slopes, _relative_index = blocks._slopes, blocks.relative_index
PLANTED: dict[str, tuple[object, str, Callable]] = {
    "mask off by one": (blocks.Problem, "allowed", _shifted_allowed),
    "P in base two": (oracle, "probabilities", _probabilities_in_base_two),
    "softmax in float32": (oracle, "probabilities", _float32_softmax),
    "sink left out of the LSE": (oracle, "log_sum_exp", _without_sink),
    "delta left out": (oracle, "attend", _no_delta),
    "dq without the scale": (oracle, "attend", _dq_unscaled),
    "softcap's derivative left out": (blocks.Problem, "block", _no_slope),
    "key heads tiled instead of interleaved": (blocks.Problem, "heads", _heads_tiled),
    "slopes doubled": (blocks, "_slopes", _alibi_doubled),
    "relative index transposed": (blocks, "relative_index", _table_transposed),
}


@pytest.mark.parametrize("bug", PLANTED)
def test_a_bug_planted_in_the_oracle_is_found(monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
    where, name, variant = PLANTED[bug]
    monkeypatch.setattr(where, name, variant)
    found = []
    for problem, make in PROBLEMS.items():
        inputs = make()
        try:
            wrong = differing(named(exact_attention(inputs)), dense_answer(inputs))
        except (IndexError, RuntimeError):
            wrong = ["raised"]
        found += [problem] if wrong else []
    assert found
