"""Is the oracle right? Held against autograd, gradcheck, mpmath and a second formula; planted bugs must
show.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath
import pytest
import torch
from torch import Tensor

from attnbench.judge import blocks, oracle
from attnbench.judge.blocks import relative_index
from attnbench.judge.oracle import Exact, exact_attention
from attnbench.problem import (
    ALiBi,
    Bias,
    BlockSparse,
    Case,
    Causal,
    Dilated,
    Documents,
    Explicit,
    GlobalTokens,
    Inputs,
    Mask,
    Padding,
    PrefixLM,
    RelativeBias,
    Score,
    Sink,
    SlidingWindow,
    Softcap,
    make_inputs,
)

CLOSE = 1e-10  # relative to the largest entry: float64 sums of a few dozen terms


def a_problem(mask: Mask | None = None, scores: tuple[Score, ...] = (), **changes: object) -> Inputs:
    values: dict = {
        "batch": 2,
        "q_len": 6,
        "k_len": 6,
        "q_heads": 4,
        "kv_heads": 2,
        "head_dim": 5,
        "v_dim": 3,
    }
    values |= {"dtype": "fp32", "direction": "fwd_bwd", "scores": scores}
    values |= {} if mask is None else {"mask": mask}
    values |= changes
    return make_inputs(Case(**values), seed=3)


def dense_alibi(heads: int, q_len: int, k_len: int) -> Tensor:
    slopes = {4: [0.25, 0.0625, 0.015625, 0.00390625], 6: [0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125]}[
        heads
    ]
    table = torch.zeros(heads, q_len, k_len, dtype=torch.float64)
    for h in range(heads):
        for i in range(q_len):
            for j in range(k_len):
                table[h, i, j] = -slopes[h] * abs(i + k_len - q_len - j)
    return table


def dense_answer(inputs: Inputs) -> dict[str, Tensor]:
    """The same by autograd through one dense einsum, masks from `materialize`, in float64."""
    case = inputs.case
    leaves = {name: x.double().requires_grad_() for name, x in inputs.tensors.items() if name != "dout"}
    group = case.q_heads // case.kv_heads
    k, v = (leaves[name].repeat_interleave(group, 1) for name in ("k", "v"))
    s = torch.einsum("bhqd,bhkd->bhqk", leaves["q"], k) * case.softmax_scale
    for score in inputs.scores:
        if isinstance(score, Softcap):
            s = score.cap * torch.tanh(s / score.cap)
    for score in inputs.scores:
        if isinstance(score, Bias):
            s = s + leaves["bias"]
        if isinstance(score, RelativeBias):
            s = s + leaves["relative"][:, score.index(case.extent)]
        if isinstance(score, ALiBi):
            s = s + dense_alibi(case.q_heads, case.q_len, case.k_len)
    allowed = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len)
    weights = torch.exp(s - s.detach().amax()) * allowed  # [B, H, Q, K], up to a constant
    total = weights.sum(-1)
    if "sink" in leaves:
        total = total + torch.exp(leaves["sink"][None, :, None] - s.detach().amax())
    p = weights / torch.where(total == 0, 1.0, total)[..., None]
    out = torch.einsum("bhqk,bhkd->bhqd", p, v)
    answer = {"out": out.detach(), "lse": (torch.log(total) + s.detach().amax()).detach()}
    assert inputs.dout is not None
    grads = torch.autograd.grad(out, list(leaves.values()), inputs.dout.double())
    names = {"bias": "dbias", "relative": "dtable", "sink": "dsink"}
    return answer | {names.get(name, f"d{name}"): g for name, g in zip(leaves, grads, strict=True)}


def named(exact: Exact) -> dict[str, Tensor]:
    tensors = {name: getattr(exact, name) for name in ("out", "lse", "dq", "dk", "dv")}
    return {name: x for name, x in tensors.items() if x is not None} | exact.scores


def differing(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> list[str]:
    """The names of the tensors that differ; the infinities must be the same ones."""
    assert got.keys() == wanted.keys()
    wrong = []
    for name, want in wanted.items():
        have = got[name]
        finite = want.isfinite()
        size = want[finite].abs().max().clamp_min(1.0) if bool(finite.any()) else torch.tensor(1.0)
        near = (have - want)[finite].abs() <= CLOSE * size
        if not torch.equal(have[~finite], want[~finite]) or not bool(near.all()):
            wrong.append(name)
    return wrong


EXPLICIT = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(1)) > 0.5
PROBLEMS: dict[str, Callable[[], Inputs]] = {
    "full": lambda: a_problem(),
    "causal": lambda: a_problem(Causal()),
    "causal, fewer queries": lambda: a_problem(Causal(), q_len=3, k_len=7),
    "causal, more queries: rows without a key": lambda: a_problem(Causal(), q_len=7, k_len=4),
    "causal top left": lambda: a_problem(Causal("top_left"), q_len=4, k_len=7),
    "window": lambda: a_problem(SlidingWindow(2, 1)),
    "padding with an empty batch row": lambda: a_problem(Padding((0, 4))),
    "padding on the left": lambda: a_problem(Padding((2, 5), "left")),
    "documents with slack": lambda: a_problem(Documents((2, 0, 3)) & Causal()),
    "prefix": lambda: a_problem(PrefixLM(2)),
    "global or window": lambda: a_problem(GlobalTokens(1) | SlidingWindow(1, 1)),
    "block sparse": lambda: a_problem(BlockSparse(((1, 0), (0, 1)), 3)),
    "dilated": lambda: a_problem(Dilated(2) & Causal()),
    "not a window": lambda: a_problem(~SlidingWindow(1, 0)),
    "explicit": lambda: a_problem(Explicit(EXPLICIT)),
    "softcap": lambda: a_problem(Causal(), (Softcap(0.5),)),
    "alibi": lambda: a_problem(Causal(), (ALiBi(),), q_len=5, k_len=8),
    "alibi, six heads": lambda: a_problem(scores=(ALiBi(),), q_heads=6),
    "bias of everything": lambda: a_problem(scores=(Bias("bhqk"),)),
    "bias of heads": lambda: a_problem(Causal(), (Bias("hqk"),)),
    "bias of keys": lambda: a_problem(Padding((3, 0)), (Bias("bk"),)),
    "bias of a head": lambda: a_problem(scores=(Bias("h"), Sink())),
    "scalar bias and softcap": lambda: a_problem(scores=(Bias(""), Sink(), Softcap(2.0))),
    "t5": lambda: a_problem(scores=(RelativeBias("t5(8,5,bidirectional)"),), scale=1.0),
    "t5, causal": lambda: a_problem(Causal(), (RelativeBias("t5(4,6,causal)"),), q_len=5, k_len=9),
    "grid": lambda: a_problem(scores=(RelativeBias("grid(2,3)"),)),
    "sink": lambda: a_problem(Causal(), (Sink(),)),
    "sink where rows are empty": lambda: a_problem(Causal(), (Sink(),), q_len=7, k_len=4),
    "all of them": lambda: a_problem(
        Causal() | Explicit(EXPLICIT),
        (Softcap(1.5), ALiBi(), Bias("bhk"), RelativeBias("grid(2,3)"), Sink()),
        scale=-0.7,
    ),
    "another scale": lambda: a_problem(scale=0.05),
    "packed in memory": lambda: a_problem(Causal(), layout="qkv_packed"),
}


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_oracle_agrees_with_autograd_of_a_dense_einsum(problem: Callable[[], Inputs]) -> None:
    inputs = problem()
    assert differing(named(exact_attention(inputs)), dense_answer(inputs)) == []


@pytest.mark.parametrize("scores_at_once", [1, 7, 40])
def test_the_pieces_in_which_it_is_computed_make_no_difference(
    monkeypatch: pytest.MonkeyPatch, scores_at_once: int
) -> None:
    inputs = PROBLEMS["all of them"]()
    whole = named(exact_attention(inputs))
    monkeypatch.setattr(oracle, "SCORES_AT_ONCE", scores_at_once)
    assert differing(named(exact_attention(inputs)), whole) == []


def test_chosen_rows_and_columns_are_those_of_the_whole_answer() -> None:
    inputs = a_problem(Causal(), (Softcap(2.0),), q_len=9, k_len=8)
    whole, rows, columns = exact_attention(inputs), torch.tensor([0, 3, 8]), torch.tensor([1, 7])
    some = exact_attention(inputs, rows, columns)
    assert whole.dq is not None
    assert whole.dk is not None
    assert whole.dv is not None
    wanted = {"out": whole.out[:, :, rows], "lse": whole.lse[:, :, rows], "dq": whole.dq[:, :, rows]}
    wanted |= {"dk": whole.dk[:, :, columns], "dv": whole.dv[:, :, columns]}
    assert differing(named(some), wanted) == []


def test_a_row_without_a_key_gives_zeros_and_an_lse_of_minus_infinity_or_the_sink() -> None:
    plain = exact_attention(a_problem(Causal(), q_len=7, k_len=4))
    assert plain.dq is not None
    assert torch.count_nonzero(plain.out[:, :, :3]) == torch.count_nonzero(plain.dq[:, :, :3]) == 0
    assert bool((plain.lse[:, :, :3] == -math.inf).all())
    assert bool(plain.lse[:, :, 3:].isfinite().all())
    inputs = a_problem(Causal(), (Sink(),), q_len=7, k_len=4)
    sink = inputs.tensors["sink"].double()
    assert torch.allclose(
        exact_attention(inputs).lse[:, :, :3], sink[None, :, None].expand(2, 4, 3), rtol=1e-15
    )


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


def test_no_tf32_and_no_autocast_reaches_it() -> None:
    inputs = a_problem(Causal())
    plain = named(exact_attention(inputs))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert differing(named(exact_attention(inputs)), plain) == []


@pytest.mark.parametrize(
    "rule", ["t5(32,128,bidirectional)", "t5(32,128,causal)", "t5(8,20,causal)", "grid(7,7)"]
)
def test_its_index_rule_is_that_of_the_problem(rule: str) -> None:
    q_len, k_len = (49, 49) if rule.startswith("grid") else (200, 333)
    score = RelativeBias(rule)
    case = Case(q_len=q_len, k_len=k_len, q_heads=1, head_dim=1, dtype="fp32", scores=(score,))
    own = relative_index(rule, torch.arange(q_len), torch.arange(k_len), q_len, k_len)
    assert torch.equal(own, score.index(case.extent))


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
