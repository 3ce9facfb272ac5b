"""The verdict passes right answers and rejects wrong ones, by element and by form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from attnbench.backend import Gradients, Output
from attnbench.errors import AttnbenchError
from attnbench.judge import Reference, judge, make_reference
from attnbench.judge.oracle import exact_attention
from attnbench.judge.rounding import UNITS
from attnbench.judge.verdict import LARGEST
from attnbench.problem import (
    ALiBi,
    Bias,
    Case,
    Causal,
    Padding,
    RelativeBias,
    Sink,
    SlidingWindow,
    Softcap,
    make_inputs,
)
from attnbench.problem.distributions import DISTRIBUTIONS
from attnbench.problem.inputs import torch_dtype
from tests.judge.right_answer import flash, inputs_of

DTYPES = ("fp32", "bf16", "fp16")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_a_right_flash_implementation_passes(
    a_case: Callable[..., Case], dtype: str, distribution: str
) -> None:
    inputs = inputs_of(a_case, distribution, dtype=dtype, mask=Causal() & SlidingWindow(40, 0), q_len=100)
    verdict = judge(make_reference(inputs), *flash(inputs), inputs)
    assert verdict.ok, verdict.reason
    assert set(verdict.errors) == {"out", "lse", "dq", "dk", "dv"}
    assert 0 < verdict.error_over_budget <= 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_exact_answer_rounded_once_is_far_inside_its_budget(
    a_case: Callable[..., Case], dtype: str
) -> None:
    inputs = inputs_of(a_case, dtype=dtype)
    exact = exact_attention(inputs)
    dq, dk, dv = (x.to(torch_dtype(dtype)) for x in (exact.dq, exact.dk, exact.dv) if x is not None)
    output = Output(exact.out.to(torch_dtype(dtype)), exact.lse.float())
    verdict = judge(make_reference(inputs), output, Gradients(dq, dk, dv), inputs)
    # One rounding is off by u of the value at the most (fp16: and by half a subnormal), sigma at least by u/2 of it.
    for error in verdict.errors.values():
        assert error.max_z is not None
        assert error.max_z <= 2
    assert verdict.ok


def _last_row_off(out: Tensor, g: Gradients) -> tuple[Tensor, Gradients]:
    out[:, :, -1] *= 1.05
    return out, g


WRONG: dict[str, Callable[[Tensor, Gradients], tuple[Tensor, Gradients]]] = {
    "one row of out": lambda out, g: (out.index_fill(2, torch.tensor([33]), 0.25), g),
    "out times 1.05": lambda out, g: (out * 1.05, g),
    "last row of out": _last_row_off,
    "dq without the scale": lambda out, g: (out, replace(g, dq=g.dq * 32**0.5)),
    "dk of another head": lambda out, g: (out, replace(g, dk=g.dk.flip(1))),
    "the last key's dv": lambda out, g: (out, replace(g, dv=g.dv.index_fill(2, torch.tensor([96]), 0.0))),
    "NaN in one element": lambda out, g: (out.index_fill(3, torch.tensor([5]), math.nan), g),
    "infinity in dk": lambda out, g: (out, replace(g, dk=g.dk.index_fill(2, torch.tensor([5]), math.inf))),
    "out in float64": lambda out, g: (out.double(), g),
    "a missing dimension": lambda out, g: (out[0], g),
    "out transposed": lambda out, g: (out.transpose(1, 2), g),
    "dv missing": lambda out, g: (out, replace(g, dv=None)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_answer_is_found_and_the_place_is_named(
    a_case: Callable[..., Case], dtype: str, fault: str
) -> None:
    inputs = inputs_of(a_case, dtype=dtype)
    output, gradients = flash(inputs)
    assert gradients is not None
    out, changed = WRONG[fault](output.out.clone(), gradients)
    verdict = judge(make_reference(inputs), Output(out), changed, inputs)
    assert not verdict.ok
    assert verdict.error_over_budget > 1
    assert math.isfinite(verdict.error_over_budget)
    if fault == "one row of out":
        assert verdict.errors["out"].worst[2] == 33
        assert "out[0, " in verdict.reason
    if fault == "the last key's dv":
        assert verdict.errors["dv"].worst[2] == 96


def test_missing_gradients_are_wrong_where_the_case_has_a_backward(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case)
    verdict = judge(make_reference(inputs), flash(inputs)[0], None, inputs)
    assert not verdict.ok
    assert "gradients" in verdict.reason


def test_a_row_without_a_key_has_to_be_exactly_zero(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case, q_len=97, k_len=65, direction="fwd", dtype="bf16")
    output, _ = flash(inputs)
    reference = make_reference(inputs)
    assert judge(reference, output, None, inputs).ok
    output.out[0, 0, 3, 7] = 1e-30
    verdict = judge(reference, output, None, inputs)
    assert not verdict.ok
    assert verdict.errors["out"].worst == (0, 0, 3, 7)


@pytest.mark.parametrize("value", [math.nan, math.inf, 0.0])
def test_the_lse_of_a_row_without_a_key_has_to_be_minus_infinity(
    a_case: Callable[..., Case], value: float
) -> None:
    inputs = inputs_of(a_case, q_len=97, k_len=65, direction="fwd")
    output, _ = flash(inputs)
    assert output.lse is not None
    assert bool((output.lse[0, 0, :32] == -math.inf).all())
    reference = make_reference(inputs)
    assert judge(reference, output, None, inputs).ok
    output.lse[0, 1, 4] = value
    assert not judge(reference, output, None, inputs).ok


def test_keys_that_nobody_sees_must_have_gradients_of_exactly_zero(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case, mask=Padding((50,)), dtype="fp16")
    output, gradients = flash(inputs)
    assert gradients is not None
    reference = make_reference(inputs)
    assert judge(reference, output, gradients, inputs).ok
    gradients.dk[0, 0, 60, 3] = 2.0**-24
    verdict = judge(reference, output, gradients, inputs)
    assert verdict.errors["dk"].worst == (0, 0, 60, 3)
    assert verdict.errors["dk"].over_budget == LARGEST


def test_what_rounds_more_than_flash_allows_passes_only_as_dense(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case, distribution="large", dtype="bf16", direction="fwd")
    k, v = (x.repeat_interleave(2, 1) for x in (inputs.k, inputs.v))
    s = (inputs.q @ k.transpose(-1, -2)) * inputs.case.softmax_scale  # scores of some hundreds, in bf16
    s = s.masked_fill(~inputs.case.mask.materialize(1, 4, 65, 97), -math.inf)
    output = Output(torch.softmax(s, -1) @ v)
    assert not judge(make_reference(inputs, "flash"), output, None, inputs).ok
    assert judge(make_reference(inputs, "dense"), output, None, inputs).ok


def test_splits_merged_by_a_far_lse_pass_only_as_flash_splits() -> None:
    # Every score near -4000, V near 1 and then near -1: half an ulp of a split's LSE moves all of out.
    case = Case(q_len=8, k_len=2048, q_heads=1, head_dim=64, dtype="fp32", scale=1.0)
    inputs = make_inputs(case, distribution="sign_flipped_v")
    inputs.q.mul_(0.01).add_(8.0)
    inputs.k.mul_(0.01).sub_(8.0)
    parts = []
    for keys in (slice(0, 1000), slice(1000, 2048)):
        s = (inputs.q.double() @ inputs.k[:, :, keys].double().transpose(-1, -2)) * case.softmax_scale
        lse = torch.logsumexp(s, -1)
        parts.append((torch.softmax(s, -1) @ inputs.v[:, :, keys].double(), lse.float().double()))
    merged = torch.logaddexp(parts[0][1], parts[1][1])
    out = torch.stack([out * torch.exp(lse - merged)[..., None] for out, lse in parts]).sum(0)
    output = Output(out.float(), merged.float())
    assert not judge(make_reference(inputs, "flash"), output, None, inputs).ok
    assert judge(make_reference(inputs, "flash_splits"), output, None, inputs).ok
    off = Output(output.out * 1.5, output.lse)
    assert not judge(make_reference(inputs, "flash_splits"), off, None, inputs).ok


def test_sigma_grows_with_the_unit_of_the_dtype(a_case: Callable[..., Case]) -> None:
    means = {}
    for dtype in DTYPES:
        reference = make_reference(inputs_of(a_case, dtype=dtype, direction="fwd", mask=Causal()))
        means[dtype] = float(reference.expected["out"].sigma.mean())
    # Rounding of out alone is u/2 + u/sqrt(6) of values near 0.3; the other terms add less than as much again.
    for dtype, mean in means.items():
        assert 0.05 * UNITS[dtype] < mean < 30 * UNITS[dtype]
    assert means["fp32"] < means["fp16"] / 100 < means["bf16"] / 500


@pytest.mark.parametrize(
    "scores", [(Softcap(3.0),), (ALiBi(),), (Bias("hqk"),), (Bias("bk"),), (Bias("h"), Sink())]
)
def test_gradients_of_score_tensors_are_expected_at_their_exact_values(
    a_case: Callable[..., Case], scores: tuple[Any, ...]
) -> None:
    inputs = inputs_of(a_case, scores=scores, batch=2)
    exact, reference = exact_attention(inputs), make_reference(inputs)
    assert reference.expected.keys() - {"out", "lse", "dq", "dk", "dv"} == exact.scores.keys()
    for name, wanted in exact.scores.items():
        got = reference.expected[name]
        assert np.allclose(got.value, wanted.numpy(), rtol=1e-10, atol=1e-12), name
        assert (got.sigma[np.abs(got.value) > 1e-9] > 0).all()


def test_the_table_of_a_relative_bias_is_judged_too(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case, scores=(RelativeBias("t5(8,20,causal)"),))
    exact, expected = exact_attention(inputs), make_reference(inputs).expected
    assert np.allclose(expected["dtable"].value, exact.scores["dtable"].numpy(), rtol=1e-10, atol=1e-12)


def test_a_reference_survives_its_arrays(a_case: Callable[..., Case], tmp_path: Any) -> None:
    inputs = inputs_of(a_case)
    reference = make_reference(inputs)
    np.savez(tmp_path / "reference.npz", **reference.to_arrays())  # type: ignore[arg-type]
    with np.load(tmp_path / "reference.npz") as arrays:
        again = Reference.from_arrays(arrays)
    first, second = judge(reference, *flash(inputs), inputs), judge(again, *flash(inputs), inputs)
    assert first == second
    assert again.contract == "flash"


def test_a_reference_of_another_case_is_refused(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case)
    with pytest.raises(AttnbenchError, match="not of"):
        judge(make_reference(inputs_of(a_case, q_len=64)), *flash(inputs), inputs)


def test_an_unknown_contract_is_refused(a_case: Callable[..., Case]) -> None:
    with pytest.raises(AttnbenchError, match="no contract 'exact'"):
        make_reference(inputs_of(a_case), "exact")


def test_a_stored_error_holds_the_fields_that_are_known(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case, direction="fwd")
    output, reference = flash(inputs)[0], make_reference(inputs)
    numbers = ["got", "expected", "sigma", "share_wrong", "reason"]
    stored = judge(reference, output, None, inputs).errors["out"].to_json()
    assert list(stored) == ["over_budget", "max_z", "rms_z", "worst", *numbers]
    assert isinstance(stored["worst"], list)
    short = judge(reference, Output(output.out[:, :, :1]), None, inputs).errors["out"].to_json()
    assert (list(short), short["worst"]) == (["over_budget", "worst", "reason"], [])
    output.out[0, 0, 3, 7] = math.nan
    stray = judge(reference, output, None, inputs).errors["out"].to_json()
    assert list(stray) == ["over_budget", "max_z", "rms_z", "worst", "got", "share_wrong", "reason"]
