"""A profile names the operators and separates copies and waiting from computing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from attnbench.backend.registry import function_backend, resolve
from attnbench.measure.profile import profile_case
from attnbench.problem import Case, Causal, make_inputs


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)


def copying(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    for _ in range(40):
        q, k, v = q.clone(), k.clone(), v.clone()
    return attend(q, k, v, mask=mask, scores=scores, scale=scale)


def test_the_operator_that_computes_is_named_for_both_directions(a_case: Callable[..., Case]) -> None:
    case = a_case(q_len=128, k_len=128, mask=Causal(), direction="fwd_bwd")
    profiled = profile_case(resolve("sdpa_flash"), case, make_inputs(case), calls=3)
    names = {operator.name: operator for operator in profiled.operators}
    forward = names["aten::_scaled_dot_product_flash_attention_for_cpu"]
    backward = names["aten::_scaled_dot_product_flash_attention_for_cpu_backward"]
    assert (forward.calls, backward.calls) == (3, 3)
    assert not forward.is_copy
    assert set(profiled.wall_ms) == {"fwd", "bwd"}
    assert profiled.prepare_ms["first_call"] > 0


def test_copies_are_separated_from_computing(a_case: Callable[..., Case]) -> None:
    case = a_case(q_len=128, k_len=128, mask=Causal())
    plain = profile_case(function_backend(attend), case, make_inputs(case), calls=3)
    copied = profile_case(function_backend(copying), case, make_inputs(case), calls=3)

    def copies(profile: Any) -> int:
        return sum(operator.calls for operator in profile.operators if operator.name == "aten::copy_")

    assert copies(plain) == 0
    assert copies(copied) == 3 * 120
    assert all(o.is_copy for o in copied.operators if o.name in ("aten::copy_", "aten::clone"))


def test_shares_are_of_the_whole(a_case: Callable[..., Case]) -> None:
    case = a_case(mask=Causal())
    profiled = profile_case(resolve("naive"), case, make_inputs(case), calls=3)
    assert 0 <= profiled.outside_share <= profiled.outside_share_of_first <= 1
    own = sum(operator.own_ms for operator in profiled.operators) / 3
    assert profiled.computing_ms + profiled.copying_ms == pytest.approx(own)


def test_the_command_writes_a_trace_that_a_viewer_reads(tmp_path: Path) -> None:
    from attnbench.cli.app import app

    case = {"q_len": 64, "k_len": 64, "q_heads": 2, "head_dim": 16, "dtype": "fp32", "mask": "causal"}
    words = [
        "profile",
        json.dumps(case),
        "-b",
        "naive",
        "--out",
        str(tmp_path),
        "--device",
        "cpu",
        "--calls",
        "2",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert "outside the kernel: " in done.stdout
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("name") == "attnbench: fwd" for event in events) == 2
    done = CliRunner().invoke(app, [*words, "--json"])
    record = json.loads(done.stdout)
    assert record["operators"][0]["own_ms"] > 0
    assert CliRunner().invoke(app, ["profile", "causal", "-b", "naive"]).exit_code == 2
