"""Does the noise allow what rounding does at the edges of a dtype, and no more?"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from attnbench.backend import Gradients, Output, resolve
from attnbench.judge import Verdict, judge, make_reference
from attnbench.problem import Case, Inputs, RelativeBias, Sink, make_inputs

FLUSHED = Case(q_len=31, k_len=15, q_heads=1, head_dim=192, dtype="bf16", scale=0.2, direction="fwd_bwd")
TABLE = Case(
    q_len=1,
    k_len=3,
    q_heads=1,
    head_dim=64,
    dtype="bf16",
    scores=(RelativeBias("t5(32,128,bidirectional)"),),
    direction="fwd_bwd",
)
UNDERFLOWING = Case(
    q_len=64,
    k_len=64,
    q_heads=3,
    kv_heads=1,
    head_dim=128,
    dtype="fp16",
    scores=(Sink(),),
    direction="fwd_bwd",
)
CANCELLING = Case(
    q_len=126,
    k_len=127,
    q_heads=1,
    head_dim=96,
    dtype="fp32",
    scores=(RelativeBias("t5(16,64,causal)"),),
    direction="fwd_bwd",
)
IN_THE_SINK = Case(
    q_len=1, k_len=1, q_heads=3, head_dim=16, dtype="fp32", scores=(Sink(),), direction="fwd_bwd"
)


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
        (replace(FLUSHED, scores=(Sink(100.0),)), "positive"),  # every P below the smallest normal number
        (replace(FLUSHED, scores=(Sink(80.0),)), "positive"),  # s - max is 70, and is rounded itself
        (TABLE, "huge_negative"),  # rounding the scores decides which key wins
        (UNDERFLOWING, "rising"),  # each row's share of dsink is near fp16's smallest number
        (CANCELLING, "sign_flipped_v"),  # an entry of dtable grows over rows, and then cancels
        (IN_THE_SINK, "rising"),  # the sink is the row's maximum, 20 above its key
    ],
    ids=[
        "flushed",
        "far below the sink",
        "another winner",
        "sink in fp16",
        "sums of a table",
        "all in the sink",
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


@pytest.mark.parametrize(
    ("sink", "smallest", "is_right"), [(100.0, 2.0**-126, True), (80.0, 2.0**-98, False)]
)
def test_only_what_lies_below_the_smallest_normal_number_may_be_flushed(
    sink: float, smallest: float, is_right: bool
) -> None:
    inputs = make_inputs(replace(FLUSHED, scores=(Sink(sink),)), 0, "cpu", "positive")
    assert inputs.dout is not None
    q, k, v, dout = (x.double() for x in (inputs.q, inputs.k, inputs.v, inputs.dout))
    s = q @ k.transpose(-1, -2) * 0.2
    lse = torch.logaddexp(s.logsumexp(-1), torch.tensor(sink, dtype=torch.float64))
    p = torch.exp(s - lse[..., None])
    assert bool((p < smallest).all())  # so that all of it goes
    sink_share = torch.exp(sink - lse)
    delta = (dout * (p @ v)).sum(-1)
    p = torch.zeros_like(p)
    ds = torch.zeros_like(p)
    gradients = Gradients(
        (ds @ k).bfloat16(),
        (ds.transpose(-1, -2) @ q).bfloat16(),
        (p.transpose(-1, -2) @ dout).bfloat16(),
        {"dsink": -(sink_share * delta).sum((0, 2)).bfloat16()},
    )
    output = Output((p @ v).bfloat16(), lse.float())
    verdict = judge(make_reference(inputs, "flash"), output, gradients, inputs)
    assert verdict.ok is is_right, verdict.reason
