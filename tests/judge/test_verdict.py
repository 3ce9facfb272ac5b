"""Does the verdict leave right answers alone and find wrong ones, element by element and in their form?"""

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
from attnbench.judge.noise import UNITS
from attnbench.judge.oracle import exact_attention
from attnbench.judge.sampling import chosen_columns, chosen_rows, chosen_tokens
from attnbench.judge.verdict import LARGEST
from attnbench.problem import (
    ALiBi,
    Bias,
    Case,
    Causal,
    Inputs,
    Padding,
    RelativeBias,
    Sink,
    SlidingWindow,
    Softcap,
)
from attnbench.problem import make_inputs as draw
from attnbench.problem.distributions import DISTRIBUTIONS
from attnbench.problem.inputs import torch_dtype

DTYPES = ("fp32", "bf16", "fp16")


def flash(inputs: Inputs) -> tuple[Output, Gradients | None]:
    """A right answer under FLASH, apart from every backend: float32 throughout, P, dS and results rounded."""
    case, dtype = inputs.case, inputs.q.dtype
    group = case.group
    q = inputs.q.float()
    k, v = (x.float().repeat_interleave(group, 1) for x in (inputs.k, inputs.v))
    s = (q @ k.transpose(-1, -2)) * case.softmax_scale
    allowed = case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len)
    s = s.masked_fill(~allowed, -math.inf)
    row_max = s.amax(-1, keepdim=True).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    p = torch.exp(s - row_max)
    total = p.sum(-1, keepdim=True)
    lse = (row_max + torch.log(total))[..., 0]
    out = (p.to(dtype).float() @ v / total.clamp_min(torch.finfo(torch.float32).tiny)).to(dtype)
    if inputs.dout is None:
        return Output(out, lse), None
    dout = inputs.dout.float()
    p = torch.exp(s - lse.masked_fill(lse == -math.inf, 0.0)[..., None])
    delta = (dout * out.float()).sum(-1, keepdim=True)
    ds = (p * (dout @ v.transpose(-1, -2) - delta)).to(dtype).float()

    def of_key_heads(x: Tensor) -> Tensor:
        return x.unflatten(1, (case.kv_heads, group)).sum(2).to(dtype)

    dq = (ds @ k * case.softmax_scale).to(dtype)
    dk = of_key_heads(ds.transpose(-1, -2) @ q * case.softmax_scale)
    dv = of_key_heads(p.to(dtype).float().transpose(-1, -2) @ dout)
    return Output(out, lse), Gradients(dq, dk, dv)


def inputs_of(a_case: Callable[..., Case], distribution: str = "randn", **changes: Any) -> Inputs:
    sizes = {"q_len": 65, "k_len": 97, "q_heads": 4, "kv_heads": 2, "head_dim": 32, "mask": Causal()}
    return draw(a_case(**({"direction": "fwd_bwd"} | sizes | changes)), 1, distribution=distribution)


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
        assert error["max_z"] <= 2
    assert verdict.ok


def _drop_last_key(out: Tensor, g: Gradients) -> tuple[Tensor, Gradients]:
    out[:, :, -1] *= 1.05
    return out, g


WRONG: dict[str, Callable[[Tensor, Gradients], tuple[Tensor, Gradients]]] = {
    "one row of out": lambda out, g: (out.index_fill(2, torch.tensor([33]), 0.25), g),
    "out times 1.05": lambda out, g: (out * 1.05, g),
    "last row of out": _drop_last_key,
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
        assert verdict.errors["out"]["worst"][2] == 33
        assert "out[0, " in verdict.reason
    if fault == "the last key's dv":
        assert verdict.errors["dv"]["worst"][2] == 96


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
    assert verdict.errors["out"]["worst"] == [0, 0, 3, 7]


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
    assert verdict.errors["dk"]["worst"] == [0, 0, 60, 3]
    assert verdict.errors["dk"]["over_budget"] == LARGEST


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
    inputs = draw(case, distribution="sign_flipped_v")
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


def test_the_same_seed_gives_the_same_reference(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case, q_len=500, k_len=3000, q_heads=8, kv_heads=8)
    first, second, other = (make_reference(inputs, seed=seed).expected["out"] for seed in (3, 3, 4))
    assert np.array_equal(first.sigma, second.sigma)
    assert not np.array_equal(first.at[2], other.at[2])


def test_a_reference_of_another_case_is_refused(a_case: Callable[..., Case]) -> None:
    inputs = inputs_of(a_case)
    with pytest.raises(AttnbenchError, match="not of"):
        judge(make_reference(inputs_of(a_case, q_len=64)), *flash(inputs), inputs)


def test_an_unknown_contract_is_refused(a_case: Callable[..., Case]) -> None:
    with pytest.raises(AttnbenchError, match="no contract 'exact'"):
        make_reference(inputs_of(a_case), "exact")


@pytest.mark.parametrize("length", [2048, 4097, 32768])
def test_a_sample_of_tokens_always_holds_the_ends_and_the_boundaries_of_tiles(length: int) -> None:
    import random

    last_tile = (length - 1) // 128 * 128
    for seed in range(20):
        tokens = chosen_tokens(length, 32, random.Random(seed))
        assert {0, 1, 63, 64, 65, 127, 128, 129, last_tile - 1, last_tile, length - 1} <= set(tokens)
        assert len(tokens) == 32
        assert tokens == sorted(set(tokens))


def test_long_cases_are_sampled_and_short_ones_are_not(a_case: Callable[..., Case]) -> None:
    import random

    long = a_case(q_len=32768, k_len=32768, q_heads=1, head_dim=64, direction="fwd_bwd")
    for sample in (chosen_rows(long, "cpu", random.Random(0)), chosen_columns(long, "cpu", random.Random(0))):
        assert len(sample.tokens) == 32
    short = a_case(q_len=128, k_len=128, q_heads=4, head_dim=64, direction="fwd_bwd")
    for sample in (
        chosen_rows(short, "cpu", random.Random(0)),
        chosen_columns(short, "cpu", random.Random(0)),
    ):
        assert sample.tokens == list(range(128))
        assert sample.kv_heads == [0, 1, 2, 3]


def test_a_sampled_reference_agrees_with_the_whole_answer(
    a_case: Callable[..., Case], monkeypatch: Any
) -> None:
    from attnbench.judge import sampling

    inputs = inputs_of(a_case, batch=3, q_len=200, k_len=150)
    exact = exact_attention(inputs)
    monkeypatch.setitem(sampling.PAIR_RUNS, "cpu", 1 << 15)
    monkeypatch.setitem(sampling.FULL_PASS_PAIRS, "cpu", 1 << 15)
    reference = make_reference(inputs)
    for name in ("out", "dq", "dk", "dv"):
        expected, whole = reference.expected[name], getattr(exact, name).numpy()
        assert expected.value.size < whole.size
        assert np.allclose(expected.value, whole[np.ix_(*expected.at)], rtol=1e-10, atol=1e-12)


def test_a_nan_in_a_row_that_is_not_sampled_is_still_seen(
    a_case: Callable[..., Case], monkeypatch: Any
) -> None:
    from attnbench.judge import sampling

    inputs = inputs_of(a_case, q_len=200, direction="fwd")
    monkeypatch.setitem(sampling.PAIR_RUNS, "cpu", 1 << 15)
    reference, (output, _) = make_reference(inputs), flash(inputs)
    left_out = next(i for i in range(200) if i not in reference.expected["out"].at[2])
    assert judge(reference, output, None, inputs).ok
    output.out[0, 0, left_out, 0] = math.nan
    assert judge(reference, output, None, inputs).errors["out"]["worst"] == [0, 0, left_out, 0]
