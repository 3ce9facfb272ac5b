"""The oracle agrees with autograd, gradcheck, fifty digits of mpmath and a second formula."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mpmath
import pytest
import torch
from torch import Tensor

from attnbench.judge.oracle import exact_attention
from attnbench.judge.scores import relative_index
from attnbench.problem import Case, Causal, Inputs, RelativeBias
from tests.judge.oracle_problems import PROBLEMS, a_problem, dense_answer, differing, named


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_oracle_agrees_with_autograd_of_a_dense_einsum(problem: Callable[[], Inputs]) -> None:
    inputs = problem()
    assert differing(named(exact_attention(inputs)), dense_answer(inputs)) == []


def test_its_explicit_backward_passes_gradcheck() -> None:
    inputs = PROBLEMS["all of them"]()
    bound = {s.kind: s for s in inputs.scores}

    class Attention(torch.autograd.Function):
        @staticmethod
        def forward(ctx, q, k, v, bias, table, sink):  # type: ignore[no-untyped-def]
            ctx.save_for_backward(q, k, v, bias, table, sink)
            return exact_attention(rebuilt(q, k, v, bias, table, sink)).out

        @staticmethod
        def backward(ctx, dout):  # type: ignore[no-untyped-def]
            exact = exact_attention(replace(rebuilt(*ctx.saved_tensors), dout=dout))
            return exact.dq, exact.dk, exact.dv, *(exact.scores[n] for n in ("dbias", "dtable", "dsink"))

    def rebuilt(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, table: Tensor, sink: Tensor) -> Inputs:
        given = {"bias": bias, "relative": table, "sink": sink}
        scores = tuple(s.bound(given[kind].detach()) if kind in given else s for kind, s in bound.items())
        return replace(inputs, q=q.detach(), k=k.detach(), v=v.detach(), scores=scores)

    named_tensors = inputs.tensors
    leaves = [named_tensors[n].double().requires_grad_() for n in ("q", "k", "v", "bias", "relative", "sink")]
    assert torch.autograd.gradcheck(Attention.apply, leaves, fast_mode=True)


def by_mpmath(inputs: Inputs, b: int, h: int, digits: int = 50) -> tuple[list, list]:
    """out [Q][Dv] and dq [Q][D] of one head in `digits` digits; dq by differentiating <dO, out>
    numerically.
    """
    case = inputs.case
    allowed = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len).expand(
        case.batch, case.q_heads, case.q_len, case.k_len
    )
    q = [[mpmath.mpf(x) for x in row] for row in inputs.q[b, h].tolist()]
    k = [[mpmath.mpf(x) for x in row] for row in inputs.k[b, h // case.group].tolist()]
    v = [[mpmath.mpf(x) for x in row] for row in inputs.v[b, h // case.group].tolist()]
    assert inputs.dout is not None
    dout = [[mpmath.mpf(x) for x in row] for row in inputs.dout[b, h].tolist()]
    scale = mpmath.mpf(case.softmax_scale)

    def row(i: int, query: list) -> list:
        keys = [j for j in range(case.k_len) if bool(allowed[b, h, i, j])]
        weights = [mpmath.exp(scale * mpmath.fdot(query, k[j])) for j in keys]
        total = mpmath.fsum(weights)
        return [
            mpmath.fsum(w * v[j][c] for w, j in zip(weights, keys, strict=True)) / total
            for c in range(case.v_dim)
        ]

    with mpmath.workdps(digits):
        out = [row(i, q[i]) for i in range(case.q_len)]
        step = mpmath.mpf(10) ** (-digits // 3)
        dq = []
        for i in range(case.q_len):
            moved = []
            for d in range(case.head_dim):
                up, down = list(q[i]), list(q[i])
                up[d], down[d] = up[d] + step, down[d] - step
                moved.append(
                    (mpmath.fdot(dout[i], row(i, up)) - mpmath.fdot(dout[i], row(i, down))) / (2 * step)
                )
            dq.append(moved)
    return out, dq


def test_it_agrees_with_fifty_digits() -> None:
    inputs = a_problem(Causal(), q_len=4, k_len=6)
    inputs = replace(inputs, q=inputs.q * 20, k=inputs.k * 5)  # scores of some hundreds: one weight takes all
    exact = exact_attention(inputs)
    assert exact.dq is not None
    for b, h in ((0, 0), (1, 3)):
        out, dq = by_mpmath(inputs, b, h)
        assert torch.allclose(exact.out[b, h], torch.tensor(out, dtype=torch.float64), rtol=1e-12, atol=1e-14)
        assert torch.allclose(exact.dq[b, h], torch.tensor(dq, dtype=torch.float64), rtol=1e-9, atol=1e-12)


def by_the_jacobian(inputs: Inputs) -> dict[str, Tensor]:
    """A second formula: the softmax's whole Jacobian diag(p) - p p^T, row by row, without LSE or delta."""
    case = inputs.case
    q, k, v = (x.double() for x in (inputs.q, inputs.k, inputs.v))
    assert inputs.dout is not None
    dout = inputs.dout.double()
    allowed = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len)
    allowed = allowed.expand(case.batch, case.q_heads, case.q_len, case.k_len)
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for b in range(case.batch):
        for h in range(case.q_heads):
            n = h // case.group
            for i in range(case.q_len):
                keys = allowed[b, h, i].nonzero()[:, 0]
                p = torch.softmax(k[b, n, keys] @ q[b, h, i] * case.softmax_scale, 0)
                jacobian = torch.diag(p) - torch.outer(p, p)
                ds = jacobian @ (v[b, n, keys] @ dout[b, h, i]) * case.softmax_scale
                dq[b, h, i] = ds @ k[b, n, keys]
                dk[b, n, keys] += torch.outer(ds, q[b, h, i])
                dv[b, n, keys] += torch.outer(p, dout[b, h, i])
    return {"dq": dq, "dk": dk, "dv": dv}


@pytest.mark.parametrize(
    "name", ["causal", "window", "padding with an empty batch row", "explicit", "another scale"]
)
def test_it_agrees_with_the_softmax_jacobian(name: str) -> None:
    inputs = PROBLEMS[name]()
    exact = named(exact_attention(inputs))
    assert differing({n: exact[n] for n in ("dq", "dk", "dv")}, by_the_jacobian(inputs)) == []


@pytest.mark.parametrize(
    "rule", ["t5(32,128,bidirectional)", "t5(32,128,causal)", "t5(8,20,causal)", "grid(7,7)"]
)
def test_its_index_rule_is_that_of_the_problem(rule: str) -> None:
    q_len, k_len = (49, 49) if rule.startswith("grid") else (200, 333)
    score = RelativeBias(rule)
    case = Case(q_len=q_len, k_len=k_len, q_heads=1, head_dim=1, dtype="fp32", scores=(score,))
    own = relative_index(rule, torch.arange(q_len), torch.arange(k_len), q_len, k_len)
    assert torch.equal(own, score.index(case.extent))
