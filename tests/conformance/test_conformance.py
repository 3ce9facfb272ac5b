"""A check passes right backends, finds wrong ones, names their cause, and survives what a backend does."""

from __future__ import annotations

import json
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from attnbench.cli.app import app
from attnbench.conformance import check, parametrize_with_backends
from attnbench.conformance.again import Again
from attnbench.conformance.claims import COMPARISONS
from attnbench.conformance.plan import CHECKS, EXHAUSTIVE_CHECKS
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.errors import AttnbenchError
from attnbench.problem import Case, Causal, SlidingWindow
from tests.conformance.functions import Careful, WithoutBackward, attention, right, with_fault


@pytest.fixture(autouse=True)
def no_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's backend sets this variable on a CPU, and printed commands repeat it."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)


CAUSAL = {"masks": {"causal"}, "dtypes": {"fp32"}}


def test_a_right_function_is_ok_and_says_what_it_refused() -> None:
    report = check(right, level="smoke", seed=2)
    assert report.ok, str(report)
    assert report.refused
    assert "takes no score changes" in report.refused[0].reason
    assert "seed 2" in str(report)


def test_a_right_function_passes_the_standard_level() -> None:
    report = check(right, **CAUSAL)  # type: ignore[arg-type]
    assert report.ok, str(report)
    assert {o.check for o in report.outcomes} == {*CHECKS} - EXHAUSTIVE_CHECKS


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "strict": ({"strict": True}, "one key too few"),
    "top left": ({"top_left": True}, "top-left"),
    "mask ignored": ({"unmasked": True}, "the mask is ignored"),
    "scale missing": ({"factor": 1.0}, "the scale is missing"),
    "sign of the scale": ({"factor": -0.125}, "the sign of the scale"),
    "heads tiled": ({"tiled": True}, "GQA"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_its_cause_named_first(name: str) -> None:
    fault, cause = FAULTS[name]
    report = check(with_fault(**fault), level="smoke", masks={"causal"}, dtypes={"fp32"}, directions={"fwd"})
    assert not report.ok
    assert cause in " ".join(" ".join(f.causes[:2]) for f in report.failures)
    failure = report.failures[0]
    assert failure.error_over_budget > 1
    assert failure.smallest is not None
    assert failure.smallest.pairs <= failure.case.pairs


def test_the_command_of_a_failure_shows_the_failure_again() -> None:
    faulty = with_fault(strict=True)
    failure = check(faulty, level="smoke", masks={"causal"}, dtypes={"bf16"}).failures[0]
    again = check(faulty, case=failure.smallest, seed=failure.seed)
    assert not again.ok
    assert f"seed={failure.seed}" in failure.command  # a function of this test has no path


def test_the_command_holds_the_whole_case() -> None:
    case = Case(
        q_len=4,
        k_len=6,
        q_heads=4,
        kv_heads=2,
        head_dim=8,
        dtype="bf16",
        mask=Causal() & SlidingWindow(2, 0),
        scale=0.5,
    )
    words = shlex.split(Again("mine.py:f", "oracle", 7, "dense").on(case, "large"))
    assert words[:4] == ["attnbench", "check", "mine.py:f", "--case"]
    assert Case.from_json(json.loads(words[4])) == case
    assert words[5:] == ["--distribution", "large", "--contract", "dense", "--seed", "7"]


PLUG_IN = """
import torch

kept = {}


def forgets_the_mask(q, k, v, *, mask, scores, scale):
    p = torch.softmax(q.float() @ k.float().transpose(-1, -2) * scale, -1)
    return (p @ v.float()).to(q.dtype)


def remembers_by_storage(q, k, v, *, mask, scores, scale):
    out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    return kept.setdefault((q.data_ptr(), q.shape, out.requires_grad), out)
"""


@pytest.mark.parametrize(
    ("function", "name"),
    [
        ("forgets_the_mask", "oracle"),
        ("remembers_by_storage", "protocol"),
        ("forgets_the_mask", "mask_probe"),
    ],
)
def test_the_printed_command_fails_for_the_same_check(function: str, name: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(PLUG_IN)
    limits: dict[str, Any] = {"masks": {"causal(top_left)"}, "dtypes": {"fp32"}, "directions": {"fwd"}}
    failure = check(f"{file}:{function}", level="smoke", only={name}, **limits).failures[0]
    words = shlex.split(failure.command)
    assert words[0] == "attnbench"
    done = CliRunner().invoke(app, [*words[1:], "--in-process"])
    assert done.exit_code == 1, done.output
    assert re.search(rf"^ *{name}: ", done.output, re.MULTILINE)


def test_a_property_is_not_run_on_a_case_that_the_caller_names() -> None:
    case = Case(q_len=8, k_len=8, q_heads=1, head_dim=16, dtype="fp32")
    with pytest.raises(AttnbenchError, match="chooses its own cases"):
        check(right, only={"mask_probe"}, case=case)


def test_a_function_that_refuses_everything_is_not_ok() -> None:
    def nothing(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        raise NotImplementedError("not today")

    report = check(nothing, level="smoke")
    assert not report.ok
    assert not report.failures
    assert "not today" in str(report)


@pytest.mark.parametrize(
    "fn",
    [
        lambda q, k, v, **_: 1 / 0,
        lambda q, k, v, **_: "no tensor",
        lambda q, k, v, **_: q[:0],
        lambda q, k, v, **_: q.double(),
        lambda q, k, v, **_: torch.full_like(q, math.nan),
    ],
    ids=["raises", "no tensor", "empty", "float64", "NaN"],
)
def test_anything_a_function_does_becomes_its_failure(fn: Callable[..., Any]) -> None:
    report = check(fn, level="smoke", masks={"full"}, dtypes={"fp32"}, directions={"fwd"})
    assert report.failures
    assert not report.ok
    assert all(f.reason and "Failed" not in f.reason for f in report.failures)


def test_an_input_changed_in_place_is_found() -> None:
    def scales_q(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return attention(q.mul_(scale), k, v, mask, scores, 1.0)

    report = check(scales_q, level="smoke", masks={"causal"}, dtypes={"fp32"}, directions={"fwd"})
    assert any("in place" in f.reason for f in report.failures)


def test_an_answer_cached_by_storage_is_found() -> None:
    answers: dict[int, Tensor] = {}

    def cached(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return answers.setdefault(q.data_ptr(), attention(q, k, v, mask, scores, scale))

    report = check(cached, level="smoke", masks={"causal"}, dtypes={"fp32"}, directions={"fwd"})
    assert not report.ok


def test_rows_that_are_never_written_are_found() -> None:
    def lazy(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        out = torch.empty(*q.shape[:3], v.shape[3], dtype=q.dtype)
        whole = q.shape[2] // 64 * 64
        out[:, :, :whole] = attention(q, k, v, mask, scores, scale)[:, :, :whole]
        return out

    report = check(lazy, level="smoke", masks={"full"}, dtypes={"bf16"}, directions={"fwd"})
    assert not report.ok
    assert any("not finite" in cause for f in report.failures for cause in f.causes)


def test_cases_are_chosen_from_what_a_backend_declares() -> None:
    report = check(Careful(), level="standard")
    assert report.ok, str(report)
    assert {o.dtype for o in report.outcomes} == {"bf16"}
    oracle = [o for o in report.outcomes if o.check == "oracle"]
    assert len(oracle) >= 24
    assert all("causal" in o.case_id for o in oracle)
    # No case of the battery is refused; a property without a case that the backend takes is not reported as held.
    properties = [o for o in report.refused if o.check in PROPERTIES]
    assert {o.reason for o in properties} == {"takes no case of it"}
    assert {o.check for o in report.refused} <= {o.check for o in properties} | COMPARISONS.keys()


def test_without_a_backward_the_forward_is_checked_in_full() -> None:
    checks = ("oracle", "mask_probe")
    declared, refusing = (
        check(backend, level="standard", only=checks) for backend in (Careful(), WithoutBackward())
    )
    assert refusing.ok, str(refusing)
    assert [o for o in refusing.outcomes if o.status == "ok"] == declared.outcomes
    assert [(o.check, o.reason) for o in refusing.refused] == [("oracle", "no backward here")]


def test_the_frame_has_a_row_for_each_outcome() -> None:
    report = check(right, level="smoke", **CAUSAL)  # type: ignore[arg-type]
    frame = report.frame()
    assert len(frame) == len(report.outcomes)
    assert set(frame.columns) >= {"backend", "check", "case_id", "status", "error_over_budget"}
    assert (frame[frame.check == "oracle"].error_over_budget.dropna() <= 1).all()


def test_the_report_is_json() -> None:
    report = check(with_fault(factor=1.0), level="smoke", directions={"fwd"}, **CAUSAL)  # type: ignore[arg-type]
    record = json.loads(json.dumps(report.to_json()))
    assert record["ok"] is False
    assert Case.from_json(record["failures"][0]["case"]) == report.failures[0].case


def test_the_same_seed_checks_the_same_cases() -> None:
    first, second = (check(right, level="smoke", seed=5, **CAUSAL) for _ in range(2))  # type: ignore[arg-type]
    assert first.outcomes == second.outcomes


def test_a_request_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(AttnbenchError, match="no level 'thorough'"):
        check(right, level="thorough")
    with pytest.raises(AttnbenchError, match="no dtype 'int8'"):
        check(right, dtypes={"int8"})
    with pytest.raises(AttnbenchError, match="no direction"):
        check(right, directions={"bwd"})


@parametrize_with_backends(right, level="smoke", masks={"causal"}, dtypes={"fp32"})
def test_a_plug_in_authors_whole_test_file(check: Callable[[], None]) -> None:
    check()


def test_a_wrong_plug_in_fails_its_own_test_file() -> None:
    faulty = with_fault(strict=True)
    faulty.__name__ = "mine"
    mark = parametrize_with_backends(
        faulty, level="smoke", masks={"causal"}, dtypes={"fp32"}, directions={"fwd"}
    )

    @mark
    def test_conformance(check: Callable[[], None]) -> None:
        check()

    (parametrize,) = test_conformance.pytestmark  # type: ignore[attr-defined]
    name, parameters = parametrize.args
    assert name == "check"
    assert [p.id for p in parameters] == ["mine-fp32-oracle", "mine-fp32-protocol"]
    for parameter in parameters:
        with pytest.raises(AssertionError, match="mine: WRONG"):
            test_conformance(*parameter.values)
