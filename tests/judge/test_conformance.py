"""Does a check pass right backends, find wrong ones, name their cause, and never break on what a backend does?"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

import attnbench as ab
from attnbench.backend import Backend, Capabilities, FunctionBackend, KnownDefect
from attnbench.cli.app import app
from attnbench.errors import AttnbenchError, CaseError
from attnbench.judge import check, parametrize_with_backends
from attnbench.judge.battery import battery
from attnbench.judge.battery_values import MASKS, Sizes
from attnbench.judge.properties import PROPERTIES
from attnbench.judge.report import Again
from attnbench.judge.shrink import fitted, smallest_failing, way_of_failing
from attnbench.judge.subject import Subject
from attnbench.problem import (
    BlockSparse,
    Case,
    Causal,
    Documents,
    Explicit,
    Padding,
    SlidingWindow,
    make_inputs,
)
from attnbench.problem.distributions import DISTRIBUTIONS, seen_keys

CAUSAL = {"masks": {"causal"}, "dtypes": {"fp32"}}


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Any, scores: Any, scale: float, **fault: Any) -> Tensor:
    """Plain attention in float32, with a fault where a test asks for one."""
    if scores:
        raise NotImplementedError("takes no score changes")
    group = q.shape[1] // k.shape[1]
    if fault.get("tiled"):
        k, v = k.repeat(1, group, 1, 1), v.repeat(1, group, 1, 1)
    else:
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    if fault.get("strict"):
        allowed = allowed & torch.ones(q.shape[2], k.shape[2], dtype=torch.bool).tril(
            k.shape[2] - q.shape[2] - 1
        )
    if fault.get("top_left"):
        allowed = ab.Causal("top_left").materialize(1, 1, q.shape[2], k.shape[2])
    if fault.get("unmasked"):
        allowed = torch.ones_like(allowed)
    s = q.float() @ k.float().transpose(-1, -2) * fault.get("factor", scale)
    p = torch.softmax(s.masked_fill(~allowed, -math.inf), -1).masked_fill(~allowed.any(-1, keepdim=True), 0.0)
    return (p.to(q.dtype).float() @ v.float()).to(q.dtype)


def right(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, k, v, mask, scores, scale)


def with_fault(**fault: Any) -> Callable[..., Tensor]:
    def faulty(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return attention(q, k, v, mask, scores, scale, **fault)

    return faulty


def test_a_right_function_is_ok_and_says_what_it_refused() -> None:
    report = check(right, level="smoke", seed=2)
    assert report.ok, str(report)
    assert report.refused
    assert "takes no score changes" in report.refused[0].reason
    assert "seed 2" in str(report)


def test_a_right_function_passes_the_standard_level() -> None:
    report = check(right, **CAUSAL)  # type: ignore[arg-type]
    assert report.ok, str(report)
    assert {o.check for o in report.outcomes} == {"oracle", "protocol", *PROPERTIES}


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
    assert f"--seed {failure.seed}" in failure.command


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
    asked: dict[str, Any] = {"masks": {"causal(top_left)"}, "dtypes": {"fp32"}, "directions": {"fwd"}}
    failure = check(f"{file}:{function}", level="smoke", only={name}, **asked).failures[0]
    words = shlex.split(failure.command)
    assert words[0] == "attnbench"
    done = CliRunner().invoke(app, words[1:])
    assert done.exit_code == 1, done.output
    assert f"\n{name}: " in done.output


def test_a_property_is_not_run_on_a_case_that_somebody_names() -> None:
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
        lambda q, k, v: q,
    ],
    ids=["raises", "no tensor", "empty", "float64", "NaN", "other arguments"],
)
def test_whatever_a_function_does_becomes_a_failure_of_its_own(fn: Callable[..., Any]) -> None:
    report = check(fn, level="smoke", masks={"full"}, dtypes={"fp32"}, directions={"fwd"})
    assert report.failures
    assert not report.ok
    assert all(f.reason for f in report.failures)


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


class Careful(Backend):
    """Right, in one mask and dtype only."""

    name = "careful"
    capabilities = Capabilities(
        masks=frozenset({"causal"}),
        combinations=False,
        scores=frozenset(),
        dtypes=frozenset({"bf16"}),
        backward=False,
    )
    fault: dict[str, Any] = {}

    def prepare(self, case: Case, inputs: Any) -> Any:
        fn = with_fault(**self.fault)
        return FunctionBackend(fn, "careful").prepare(case, inputs)


def test_cases_are_chosen_from_what_a_backend_declares() -> None:
    report = check(Careful(), level="standard")
    assert report.ok, str(report)
    assert {o.dtype for o in report.outcomes} == {"bf16"}
    oracle = [o for o in report.outcomes if o.check == "oracle"]
    assert len(oracle) >= 24
    assert all("causal" in o.case_id for o in oracle)
    assert not report.refused


STRICT = KnownDefect(reason="masks strictly", link="https://example.org/1", versions="<2")


class Known(Careful):
    fault = {"strict": True}
    known_defects = dict.fromkeys(("oracle", "protocol"), STRICT)

    def version(self) -> str:
        return "careful 1.2.0+cpu"


def test_a_known_defect_does_not_fail_the_check_and_is_told() -> None:
    report = check(Known(), level="smoke")
    assert not report.failures
    assert "with 2 known defects" in str(report)
    assert "known defect, oracle: masks strictly (https://example.org/1; versions <2)" in str(report)
    assert {o.status for o in report.outcomes if o.check == "oracle"} >= {"known"}


def test_a_known_defect_that_is_gone_fails_the_check() -> None:
    backend = Known()
    backend.fault = {}
    report = check(backend, level="smoke")
    assert not report.ok
    assert set(report.gone) == {"oracle", "protocol"}
    assert "known defect gone, oracle: it passes now" in str(report)


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"versions": ">=2"},
        {"devices": frozenset({"cuda"})},
        {"shows": lambda case: case.batch > 1 << 20},
    ],
    ids=["version", "device", "case"],
)
def test_a_known_defect_excuses_nothing_where_it_is_not_known(elsewhere: dict[str, Any]) -> None:
    backend = Known()
    backend.known_defects = {"oracle": replace(STRICT, **elsewhere)}
    report = check(backend, level="smoke")
    assert any(f.check == "oracle" for f in report.failures)
    assert not report.known
    assert not report.gone


def test_a_known_defect_of_one_distribution_excuses_no_other() -> None:
    backend = Known()
    backend.known_defects = {"oracle:negative_lse": STRICT}
    report = check(backend, level="smoke")
    assert report.known
    failed = {f.distribution for f in report.failures if f.check == "oracle"}
    assert failed
    assert "negative_lse" not in failed


def test_a_version_that_nobody_can_read_is_taken_for_a_defective_one() -> None:
    assert STRICT.is_in("unknown")
    assert STRICT.is_in("torch 1.13.1+cpu")
    assert not STRICT.is_in("torch 2.0.0")


def test_the_frame_has_a_row_for_each_outcome() -> None:
    report = check(right, level="smoke", **CAUSAL)  # type: ignore[arg-type]
    frame = report.frame()
    assert len(frame) == len(report.outcomes)
    assert set(frame.columns) >= {"backend", "check", "case_id", "status", "error_over_budget"}
    assert (frame[frame.check == "oracle"].error_over_budget.dropna() <= 1).all()


def test_the_report_is_json() -> None:
    import json

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


@pytest.mark.parametrize("level", ["smoke", "standard"])
def test_a_battery_covers_what_it_says_and_is_the_same_each_time(level: str) -> None:
    cases = battery(level, "bf16")
    assert [(c.id, d) for c, d in cases] == [(c.id, d) for c, d in battery(level, "bf16")]
    assert len({(c.id, d) for c, d in cases}) == len(cases)
    if level == "standard":
        assert {kind for c, _ in cases for kind in c.mask.kinds} == {
            kind for make in MASKS.values() for kind in make_kinds(make)
        }
        assert {d for _, d in cases} == set(DISTRIBUTIONS)
        assert {s.kind for c, _ in cases for s in c.scores} == {
            "softcap",
            "alibi",
            "bias",
            "relative",
            "sink",
        }
        assert any(c.q_len > c.k_len for c, _ in cases)
        assert any(c.q_len == 1 and c.k_len >= 4096 for c, _ in cases)
        assert any(c.batch > 65535 for c, _ in cases)
        assert any(c.k_len % 32 == 1 for c, _ in cases)
        assert any(c.q_len % 128 == 64 for c, _ in cases)
        assert any(c.head_dim != c.v_dim for c, _ in cases)


def make_kinds(make: Callable[..., Any]) -> frozenset[str]:
    return make(Sizes(64, 64, 1, 1)).kinds


@pytest.mark.parametrize("masks", [{"causal"}, {"window", "causal"}, {"causal & window(5, 0)"}])
def test_a_battery_keeps_to_the_masks_it_is_asked_for(masks: set[str]) -> None:
    for case, _ in battery("standard", "fp32", masks=masks):
        assert case.mask.kinds <= masks or str(case.mask) in masks


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_every_distribution_is_finite_and_deterministic(
    a_case: Callable[..., Case], distribution: str
) -> None:
    for dtype in ("fp16", "fp32"):
        case = a_case(dtype=dtype, mask=Padding((9,)), direction="fwd_bwd")
        first, second = (make_inputs(case, 4, distribution=distribution) for _ in range(2))
        assert first.checksum() == second.checksum()
        assert all(bool(x.isfinite().all()) for x in first.tensors.values())


def test_huge_numbers_lie_only_where_no_query_of_the_key_head_looks() -> None:
    case = Case(
        batch=2, q_len=5, k_len=9, q_heads=2, head_dim=4, dtype="fp32", mask=Padding((3, 7)) & Causal()
    )
    seen = seen_keys(case)
    allowed = case.mask.materialize(2, 2, 5, 9).expand(2, 2, 5, 9)
    assert (seen == allowed.any(2).numpy()).all()
    inputs = make_inputs(case, 0, distribution="huge_unseen")
    assert ((inputs.k.abs() > 1e20).all(-1).numpy() == ~seen).all()


def test_masks_are_cut_to_smaller_sizes() -> None:
    table = torch.rand(2, 4, 8, 8) > 0.5
    cut = fitted(Explicit(table) & Padding((8, 3)), 1, 2, 4, 5)
    wanted = Explicit(table[:1, :2, :4, :5]) & Padding((5,))
    assert cut == wanted
    assert fitted(Documents((3, 2, 3)), 1, 1, 4, 4) == Documents((3, 1, 0))
    layout = [[[1, 0], [0, 1]], [[1, 1], [0, 1]]]
    assert fitted(BlockSparse(layout, 4), 1, 1, 8, 8) == BlockSparse(layout[:1], 4)


def test_the_smallest_case_still_fails() -> None:
    subject = Subject(FunctionBackend(with_fault(tiled=True), "tiled"))
    case = Case(batch=3, q_len=65, k_len=65, q_heads=6, kv_heads=2, head_dim=64, dtype="fp32", mask=Causal())
    smallest, _ = smallest_failing(subject, case, "large")
    assert not subject.verdict(subject.inputs(smallest)).ok
    assert smallest.group > 1
    assert smallest.kv_heads > 1
    assert (smallest.batch, smallest.q_len) == (1, 1)


def test_a_failure_that_raises_is_not_shrunk_to_another_fault() -> None:
    def two_faults(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if q.shape[1] != k.shape[1]:
            raise RuntimeError("cannot group heads")
        return attention(q, k, v, mask, scores, scale, strict=True)

    subject = Subject(FunctionBackend(two_faults, "two faults"))
    case = Case(batch=2, q_len=65, k_len=65, q_heads=6, kv_heads=2, head_dim=32, dtype="fp32", mask=Causal())
    smallest, _ = smallest_failing(subject, case, "randn")
    assert way_of_failing(subject, smallest, "randn") == "raises RuntimeError:"
    assert smallest.group > 1
    assert (smallest.batch, smallest.q_len, smallest.kv_heads) == (1, 1, 1)


def test_a_distribution_that_is_none_is_an_error_with_a_name() -> None:
    case = Case(q_len=2, k_len=2, q_heads=1, head_dim=8, dtype="fp32")
    with pytest.raises(CaseError, match="no distribution called None"):
        make_inputs(case, distribution=None)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_holds_for_a_right_function(name: str) -> None:
    masks = ("causal", "full", "window", "explicit")
    subject = Subject(FunctionBackend(right, "right"), dtype="bf16", masks=masks)
    assert list(PROPERTIES[name].run(subject)) == []


def _leaky(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, k, v, mask, scores, scale) + 1e-6 * v.float().mean(2, keepdim=True).to(q.dtype)


def _clamped(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, k, v.clamp(-3, 3), mask, scores, scale)


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] + 0.01


def _offset_gradient(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, _Doubled.apply(k), v, mask, scores, scale)


def _short_value_gradient(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    return attention(q, k, 0.9 * v + 0.1 * v.detach(), mask, scores, scale)


def _recency(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    # Late keys count more, whatever the mask says: one more feature that scores the position.
    place = torch.arange(k.shape[2]).div(k.shape[2] * scale).expand(k.shape[:3])[..., None]
    q, k = torch.cat((q, torch.ones_like(q[..., :1])), -1), torch.cat((k, place.to(k.dtype)), -1)
    return attention(q, k, v, mask, scores, scale)


def _first_head_louder(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    out = attention(q, k, v, mask, scores, scale)
    return out * (1 + (torch.arange(out.shape[1]) == 0)[:, None, None])


PROPERTY_FAULTS: dict[str, Callable[..., Tensor]] = {
    "mask_probe": with_fault(strict=True),
    "masked_keys_do_not_leak": _leaky,
    "unseen_keys_get_no_gradient": _offset_gradient,
    "gradient_identities": _offset_gradient,
    "inner_products_agree": _short_value_gradient,
    "keys_in_another_order_give_the_same": _recency,
    "heads_in_another_order_give_the_same": _first_head_louder,
    "one_hot_retrieval": with_fault(factor=0.001),
    "scale_moves_between_q_and_scale": with_fault(factor=0.125),
    "powers_of_two_pass_through": _clamped,
    "signs_cancel": lambda q, k, v, *, mask, scores, scale: attention(q.abs(), k, v, mask, scores, scale),
    "strides_make_no_difference": lambda q, k, v, *, mask, scores, scale: attention(
        q.as_strided(q.shape, torch.empty(q.shape).stride()), k, v, mask, scores, scale
    ),
    "grouped_heads_equal_repeated_keys": with_fault(tiled=True),
    "decode_equals_the_last_row": with_fault(top_left=True),
    "large_inputs_stay_finite": lambda q, k, v, *, mask, scores, scale: attention(
        q.clamp(-50, 50), k, v, mask, scores, scale
    ),
    "a_batch_row_alone_is_the_same": lambda q, k, v, *, mask, scores, scale: attention(
        q, k, v if v.shape[0] > 1 else v * 2, mask, scores, scale
    ),
}


@pytest.mark.parametrize("name", PROPERTY_FAULTS)
def test_a_property_is_broken_by_the_fault_it_is_there_for(name: str) -> None:
    masks = ("causal", "full", "window", "padding", "explicit")
    subject = Subject(FunctionBackend(PROPERTY_FAULTS[name], "faulty"), dtype="fp32", masks=masks)
    findings = list(PROPERTIES[name].run(subject))
    assert findings
    assert all(f.reason and f.error_over_budget > 1 for f in findings)
