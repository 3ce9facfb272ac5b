"""The rounding model allows what rounding does at the edges of a dtype, and no more."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import product

import pytest
import torch
from torch import Tensor

from attnbench.backend import Gradients, Output, resolve
from attnbench.judge import Verdict, judge, make_reference
from attnbench.judge.oracle import exact_attention
from attnbench.judge.rounding import reach
from attnbench.problem import Bias, Case, Inputs, RelativeBias, Sink, make_inputs
from attnbench.problem.inputs import torch_dtype

a_case = partial(Case, q_heads=1, direction="fwd_bwd")


def below_the_sink(logit: float) -> Case:
    """All keys score about 10, and the sink so much that they have next to no weight."""
    return a_case(q_len=31, k_len=15, head_dim=192, dtype="bf16", scale=0.2, scores=(Sink(logit),))


T5 = RelativeBias("t5(32,128,bidirectional)")
ROUNDED_WINNER = a_case(q_len=1, k_len=3, head_dim=64, dtype="bf16", scores=(T5,))
UNDERFLOWING = a_case(q_len=64, k_len=64, q_heads=3, kv_heads=1, head_dim=128, dtype="fp16", scores=(Sink(),))
CANCELLING = a_case(
    q_len=126, k_len=127, head_dim=96, dtype="fp32", scores=(RelativeBias("t5(16,64,causal)"),)
)
IN_THE_SINK = a_case(q_len=1, k_len=1, q_heads=3, head_dim=16, dtype="fp32", scores=(Sink(),))


def verdict_of(name: str, inputs: Inputs) -> Verdict:
    backend = resolve(name)
    prepared = backend.prepare(inputs.case, inputs)
    output = prepared.forward()
    assert inputs.dout is not None
    gradients = prepared.backward(inputs.dout)
    return judge(make_reference(inputs, backend.capabilities.contract), output, gradients, inputs)


@pytest.mark.parametrize("name", ["naive", "mask_multiply", "local_blocks"])
@pytest.mark.parametrize(
    ("case", "distribution"),
    [
        pytest.param(below_the_sink(100.0), "positive", id="flushed"),  # below the smallest normal number
        pytest.param(
            below_the_sink(80.0), "positive", id="far below the sink"
        ),  # s - max, 70, is rounded too
        pytest.param(ROUNDED_WINNER, "huge_negative", id="another winner"),  # rounding decides which key wins
        pytest.param(UNDERFLOWING, "rising", id="sink in fp16"),  # a row's share of dsink is fp16's smallest
        pytest.param(CANCELLING, "sign_flipped_v", id="sums of a table"),  # an entry grows, and then cancels
        pytest.param(IN_THE_SINK, "rising", id="all in the sink"),  # the row's maximum, 20 above its key
    ],
)
def test_a_dense_backend_is_right_where_rounding_has_the_most_to_say(
    name: str, case: Case, distribution: str
) -> None:
    if resolve(name).refuses(case):
        pytest.skip(f"{name} does not take the case")
    for seed in range(4):
        verdict = verdict_of(name, make_inputs(case, seed, "cpu", distribution))
        assert verdict.ok, verdict.reason


def unchanged(x: Tensor) -> Tensor:
    return x


Step = Callable[[Tensor], Tensor]


def answer(
    inputs: Inputs,
    argument: Step = unchanged,
    weights: Step = unchanged,
    pairs: Step = unchanged,
    total: Step = unchanged,
) -> tuple[Output, Gradients]:
    """The exact forward under the full mask, and gradients in float64 with one step changed: what exp is given, P (and
    the sink's), dS, or the sums of a table's entries after each row.
    """
    case, dtype = inputs.case, torch_dtype(inputs.case.dtype)
    assert inputs.dout is not None
    q, dout = inputs.q.double(), inputs.dout.double()
    k, v = (x.double().repeat_interleave(case.group, 1) for x in (inputs.k, inputs.v))
    s = torch.einsum("bhqd,bhkd->bhqk", q, k) * case.softmax_scale  # [B, H, Q, K]
    sink = torch.full((case.q_heads,), -math.inf, dtype=torch.float64)
    for score in inputs.scores:
        assert score.tensor is not None
        if isinstance(score, Sink):
            sink = score.tensor.double()
        if isinstance(score, RelativeBias):
            s = s + score.tensor.double()[:, score.index(case.extent)]
    top = torch.maximum(s.amax(-1), sink[:, None])[..., None]
    powers, of_sink = torch.exp(argument(s - top)), torch.exp(argument(sink[:, None, None] - top))
    whole = powers.sum(-1, keepdim=True) + of_sink
    p, p_sink = weights(powers / whole), weights(of_sink / whole)
    dp = torch.einsum("bhqd,bhkd->bhqk", dout, v)
    delta = (p * dp).sum(-1, keepdim=True)
    ds = pairs(p * (dp - delta))
    gradients = {
        "dq": torch.einsum("bhqk,bhkd->bhqd", ds, k) * case.softmax_scale,
        "dk": torch.einsum("bhqk,bhqd->bhkd", ds, q) * case.softmax_scale,
        "dv": torch.einsum("bhqk,bhqd->bhkd", p, dout),
    }
    for name in ("dk", "dv"):
        gradients[name] = gradients[name].unflatten(1, (case.kv_heads, case.group)).sum(2)
    for score in inputs.scores:
        assert score.tensor is not None
        if isinstance(score, Sink):
            gradients["dsink"] = -(p_sink * delta).sum((0, 2, 3))
        if isinstance(score, RelativeBias):
            table = torch.zeros(score.tensor.shape, dtype=torch.float64)
            for i, entries in enumerate(score.index(case.extent)):
                table = total(table.index_add(1, entries, ds[:, :, i].sum(0)))
            gradients["dtable"] = table
    dq, dk, dv, *_ = given = [x.to(dtype) for x in gradients.values()]
    output = Output(exact_attention(inputs).out.to(dtype))
    return output, Gradients(dq, dk, dv, dict(zip(list(gradients)[3:], given[3:], strict=True)))


def bits(count: int) -> Step:
    """Rounds to so many significant bits: 8 are bf16's, 11 fp16's, 24 float32's."""

    def rounded(x: Tensor) -> Tensor:
        fraction, exponent = torch.frexp(x)
        return torch.ldexp(torch.round(fraction * 2.0**count) / 2.0**count, exponent)

    return rounded


def multiples(of: float) -> Step:
    """Rounds to multiples, as numbers below the smallest normal one are."""
    return lambda x: torch.round(x / of) * of


def flushed(below: float) -> Step:
    """Loses what is smaller."""
    return lambda x: torch.where(x.abs() < below, 0.0, x)


Changed = dict[str, Step]
SMALL_IN_FP16 = replace(UNDERFLOWING, scores=(T5, Sink(6.0)))
NEARLY_EQUAL = a_case(q_len=31, k_len=1024, head_dim=64, dtype="bf16")


@pytest.mark.parametrize(
    ("case", "distribution", "contract", "allowed", "fault", "tensors"),
    [
        pytest.param(
            *(below_the_sink(96.0), "positive", "flash"),
            *({"weights": flushed(2.0**-126)}, {"weights": flushed(2.0**-123)}),
            ("dq", "dk", "dv"),
            id="flush to zero",
        ),
        pytest.param(
            *(UNDERFLOWING, "rising", "dense"),
            *({"weights": flushed(2.0**-24)}, {"weights": flushed(2.0**-21)}),
            ("dv",),
            id="flush to zero in fp16",
        ),
        pytest.param(
            *(SMALL_IN_FP16, "rising", "dense"),
            *({"weights": multiples(2.0**-24)}, {"weights": multiples(2.0**-18)}),
            ("dk", "dv", "dsink"),
            id="underflow in fp16",
        ),
        pytest.param(
            *(SMALL_IN_FP16, "rising", "dense"),
            *({"weights": multiples(2.0**-24)}, {"weights": multiples(2.0**-16)}),
            ("dtable",),
            id="underflow in fp16, summed over pairs",
        ),
        pytest.param(
            *(below_the_sink(80.0), "positive", "dense"),
            *({"argument": bits(8)}, {"argument": bits(6)}),
            ("dq", "dk", "dv"),
            id="rounded difference to the maximum",
        ),
        pytest.param(  # here the maximum is near and the LSE far: what counts is the difference to the maximum
            *(NEARLY_EQUAL, "near_constant_v", "dense"),
            *({"weights": bits(8)}, {"weights": multiples(2.0**-11)}),
            ("dv",),
            id="difference to the maximum, not to the LSE",
        ),
        pytest.param(  # a row's weights add up to 16
            *(replace(ROUNDED_WINNER, q_len=64, k_len=64), "huge_negative", "dense"),
            *({}, {"weights": lambda p: torch.full_like(p, 0.25)}),
            ("dtable",),
            id="another winner",
        ),
        pytest.param(
            *(CANCELLING, "sign_flipped_v", "flash"),
            *({"total": bits(24)}, {"total": bits(20)}),
            ("dtable",),
            id="sums of a table",
        ),
        pytest.param(
            *(IN_THE_SINK, "rising", "flash"),
            *({"argument": bits(24)}, {"argument": bits(18)}),
            ("dsink",),
            id="all in the sink",
        ),
        pytest.param(
            *(replace(IN_THE_SINK, q_len=64, dtype="bf16", scores=(Sink(2.0),)), "rising", "dense"),
            *({"argument": bits(8)}, {"argument": bits(2)}),
            ("dk", "dv", "dsink"),
            id="all in the sink, rounded",
        ),
    ],
)
def test_what_the_contract_rounds_is_right_and_a_coarser_step_is_wrong(
    case: Case, distribution: str, contract: str, allowed: Changed, fault: Changed, tensors: tuple[str, ...]
) -> None:
    # Each fault is chosen so that it is right where the term of the noise that it tests is 8 times as large.
    inputs = make_inputs(case, 0, "cpu", distribution)
    reference = make_reference(inputs, contract)
    verdict = judge(reference, *answer(inputs, **allowed), inputs)
    assert verdict.ok, verdict.reason
    assert set(judge(reference, *answer(inputs, **fault), inputs).wrong) >= set(tensors)


@pytest.mark.parametrize("amplitude", [1e-4, 0.03, 1.0, 3.0, 1000.0])
def test_a_weight_reaches_as_far_as_its_scores_may_move_it(amplitude: float) -> None:
    s = torch.tensor([0.0, -1.0, -1.5, -4.0, -9.0], dtype=torch.float64)
    signs = torch.tensor(list(product((-1, 1), repeat=len(s))), dtype=torch.float64)
    p = torch.softmax(s, 0)
    moved = (torch.softmax(s + amplitude * signs, -1) - p).abs()  # [patterns of signs, keys]
    reached = reach(s, torch.logsumexp(s, 0, keepdim=True)[0], torch.full_like(s, amplitude))
    assert bool((reached >= moved.mean(0)).all())
    assert bool((reached <= 3 * moved.amax(0)).all())


def test_a_scale_of_zero_makes_no_gradient_of_a_bias_small() -> None:
    inputs = make_inputs(a_case(q_len=8, k_len=8, head_dim=16, dtype="fp32", scale=0.0, scores=(Bias("k"),)))
    exact = exact_attention(inputs)
    assert exact.dq is not None
    assert exact.dk is not None
    assert exact.dv is not None
    dq, dk, dv, dbias = (x.float() for x in (exact.dq, exact.dk, exact.dv, exact.scores["dbias"]))
    reference, output = make_reference(inputs), Output(exact.out.float())
    assert judge(reference, output, Gradients(dq, dk, dv, {"dbias": dbias}), inputs).ok
    assert not judge(reference, output, Gradients(dq, dk, dv, {"dbias": 0 * dbias}), inputs).ok


@pytest.mark.parametrize(("below", "is_right"), [(2.0**-126, True), (2.0**-123, False)])
def test_a_gradient_of_a_score_may_be_flushed_below_the_smallest_normal_number(
    below: float, is_right: bool
) -> None:
    case = a_case(q_len=31, k_len=15, head_dim=64, dtype="bf16", scale=1.0)
    inputs = make_inputs(case, 0, "cpu", "near_constant_v")
    assert inputs.dout is not None
    inputs = replace(inputs, dout=inputs.dout * 2.0**-117)  # dS is near 2^-124, and P near 1 / 15
    verdict = judge(make_reference(inputs), *answer(inputs, pairs=flushed(below)), inputs)
    assert set(verdict.wrong) == (set() if is_right else {"dq", "dk"})
