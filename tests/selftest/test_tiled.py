"""The tiled attention that mutants derive from agrees with autograd through the formula in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.errors import AttnbenchError
from attnbench.problem import Inputs, make_inputs, parse_mask, parse_score
from attnbench.selftest.mutants import Tiled, TiledBackend, Tiling, variant
from attnbench.selftest.mutants.right import RIGHT

PROBLEMS: dict[str, dict[str, Any]] = {
    "full": {},
    "groups": {"q_heads": 4, "kv_heads": 2, "q_len": 33, "k_len": 21, "mask": "causal"},
    "window and padding": {"batch": 2, "mask": "window(3, 2) & padding(16, 9)"},
    "rows without keys": {"q_len": 19, "k_len": 7, "mask": "causal"},
    "softcap and ALiBi": {"scores": ("softcap(2)", "alibi"), "mask": "causal"},
    "broadcast bias": {"batch": 2, "scores": ("bias(hk)",)},
    "bias by batch": {"batch": 2, "scores": ("bias(bhqk)", "softcap(3)")},
    "relative bias": {"scores": ("relative(t5,8,16,bidirectional)",), "k_len": 40},
    "sink": {"scores": ("sink",), "mask": "causal", "q_len": 9, "k_len": 5},
    "other value dim": {"v_dim": 12, "scale": 0.3},
}


def formula(inputs: Inputs) -> dict[str, Tensor]:
    """softmax(QK^T) V and its gradients by autograd, all in float64, with torch's own softmax over keys and sink."""
    case = inputs.case
    leaves = {n: x.double().requires_grad_() for n, x in inputs.tensors.items() if n != "dout"}
    of = {score.kind: score for score in case.scores}
    k, v = (leaves[n].repeat_interleave(case.group, dim=1) for n in ("k", "v"))
    s = torch.einsum("bhqd,bhkd->bhqk", leaves["q"], k) * case.softmax_scale
    if "softcap" in of:
        s = of["softcap"].cap * torch.tanh(s / of["softcap"].cap)  # type: ignore[attr-defined]
    if "bias" in of:
        s = s + leaves["bias"]
    if "relative" in of:
        s = s + leaves["relative"][:, of["relative"].index(case.extent)]  # type: ignore[attr-defined]
    if "alibi" in of:
        distance = torch.arange(case.q_len)[:, None] + case.k_len - case.q_len - torch.arange(case.k_len)
        slopes = torch.tensor([2.0 ** (-8 * (h + 1) / case.q_heads) for h in range(case.q_heads)]).double()
        s = s - slopes[:, None, None] * distance.abs()
    sink = (
        leaves["sink"][None, :, None, None] if "sink" in of else torch.tensor(-torch.inf, dtype=torch.float64)
    )
    s = s.masked_fill(~case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len), -torch.inf)
    s = torch.cat([s, sink.expand(*s.shape[:3], 1)], dim=-1)
    lse = torch.logsumexp(s, -1)
    p = torch.softmax(s, -1).nan_to_num(0.0)[..., :-1]  # a row without keys is NaN in torch's softmax
    out = p @ v
    assert inputs.dout is not None
    grads = torch.autograd.grad(out, list(leaves.values()), inputs.dout.double())
    names = {"q": "dq", "k": "dk", "v": "dv", "bias": "dbias", "relative": "dtable", "sink": "dsink"}
    named = {names[n]: g.nan_to_num(0.0) for n, g in zip(leaves, grads, strict=True)}
    return {"out": out.detach(), "lse": lse.detach(), **named}


def results(tiled: Tiled, dout: Tensor) -> dict[str, Tensor]:
    output, grads = tiled.forward(), tiled.backward(dout)
    assert output.lse is not None
    return {
        "out": output.out,
        "lse": output.lse,
        "dq": grads.dq,
        "dk": grads.dk,
        "dv": grads.dv,
        **grads.scores,
    }


def problem(a_case: Any, name: str) -> Inputs:
    fields = dict(PROBLEMS[name])
    fields["mask"] = parse_mask(fields.get("mask", "full"))
    fields["scores"] = tuple(parse_score(text) for text in fields.get("scores", ()))
    return make_inputs(a_case(**fields, direction="fwd_bwd"), seed=3)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(
    "tiling",
    [Tiling(8, 8), Tiling(5, 16, splits=3), Tiling(16, 8, reverse=True)],
    ids=["tiles", "splits", "reverse"],
)
def test_tiles_give_what_autograd_through_the_formula_gives(a_case: Any, name: str, tiling: Tiling) -> None:
    inputs = problem(a_case, name)
    assert inputs.dout is not None
    exact = formula(inputs)
    tiled = results(Tiled(inputs.case, inputs, tiling), inputs.dout)
    assert tiled.keys() == exact.keys()
    for key, x in tiled.items():
        torch.testing.assert_close(x.double(), exact[key], rtol=2e-5, atol=2e-5, msg=f"{key} differs")


@pytest.mark.parametrize("right", RIGHT, ids=lambda r: r.name.replace(" ", "-"))
def test_every_right_implementation_agrees_with_the_formula(a_case: Any, right: Any) -> None:
    backend = right.make()
    computed = 0
    for name in PROBLEMS:
        inputs = problem(a_case, name)
        if backend.refuses(inputs.case):
            continue
        computed += 1
        exact = formula(inputs)
        prepared = backend.prepare(inputs.case, inputs)
        out = prepared.forward().out
        assert inputs.dout is not None
        grads = prepared.backward(inputs.dout)
        torch.testing.assert_close(out.double(), exact["out"], rtol=2e-5, atol=2e-5)
        for key in ("dq", "dk", "dv"):
            torch.testing.assert_close(getattr(grads, key).double(), exact[key], rtol=2e-5, atol=2e-5)
    assert computed


def test_an_output_is_read_where_the_inputs_lie_now(a_case: Any) -> None:
    inputs = make_inputs(a_case())
    prepared = TiledBackend("tiled").prepare(inputs.case, inputs)
    first = prepared.forward().out
    inputs.v.neg_()
    assert torch.equal(prepared.forward().out, -first)


def test_strided_and_expanded_inputs_give_the_bits_of_contiguous_ones(a_case: Any) -> None:
    inputs = make_inputs(a_case(direction="fwd_bwd", batch=2))
    assert inputs.dout is not None
    strided = replace(
        inputs,
        k=inputs.k[:1].expand_as(inputs.k),
        v=inputs.v.transpose(1, 3).contiguous().transpose(1, 3),
    )
    plain = replace(strided, k=strided.k.contiguous(), v=strided.v.contiguous())
    from_strided, from_plain = (results(Tiled(x.case, x), inputs.dout) for x in (strided, plain))
    assert all(torch.equal(from_strided[key], from_plain[key]) for key in from_plain)


def test_a_step_that_does_not_exist_cannot_be_replaced() -> None:
    with pytest.raises(AttnbenchError, match="no step 'rescal'"):
        variant("typo", rescal=lambda self: 1)
