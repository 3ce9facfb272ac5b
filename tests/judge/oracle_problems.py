"""Problems of every mask and score change, and their answers by a dense einsum and autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from attnbench.judge.oracle import Exact
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
