"""Each property holds for a right function and breaks under the fault it is there for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.backend import Capabilities, FunctionBackend, Output, Prepared
from attnbench.conformance import check
from attnbench.conformance.properties import transforms
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.subject import Refused, Subject
from attnbench.problem import Case, Inputs
from attnbench.selftest.mutants import MUTANTS, TiledBackend
from attnbench.selftest.mutants.layout import ignoring_strides
from attnbench.selftest.mutants.right import weighted_values
from tests.conformance.functions import attention, right, with_fault
from tests.conformance.handed import parameters


@pytest.fixture(autouse=True)
def no_cpp_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile traces, and runs what it traced without a C++ compiler."""
    monkeypatch.setattr(transforms, "COMPILER", "aot_eager")


MASKS = ("causal", "full", "window", "padding", "explicit")


def twice_differentiable(fn: Callable[..., Tensor]) -> FunctionBackend:
    return FunctionBackend(fn, "mine", Capabilities(double_backward=True))


@pytest.mark.parametrize("name", PROPERTIES)
def test_a_property_holds_for_a_right_function(name: str) -> None:
    function = parameters.right if name == "changed_scores_are_read" else right
    subject = Subject(FunctionBackend(function, "right"), dtype="bf16", masks=MASKS)
    if name == "halves_merge_by_lse":
        with pytest.raises(Refused, match="gives no LSE"):
            list(PROPERTIES[name].run(subject))
        return
    if name == "memory_of_a_bias_makes_no_difference":
        subject = Subject(FunctionBackend(with_bias(), "right"), dtype="fp32", masks=MASKS)
    if name == "second_gradients_are_exact":
        subject = Subject(twice_differentiable(right), dtype="fp32", masks=MASKS)
    if name == "autocast_computes_in_its_dtype":
        subject.dtype = "fp32"
    assert list(PROPERTIES[name].run(subject)) == []
    assert subject.answers or name == "mixed_dtypes_are_refused_or_right"


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


def with_bias(read: Callable[[Tensor], Tensor] = lambda x: x) -> Callable[..., Tensor]:
    """Right with a bias, which is read as the fault has it."""

    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        changed = tuple(score.bound(read(score.tensor)) for score in scores)
        return weighted_values(q @ k.transpose(-1, -2) * scale, v, mask, changed)

    return fn


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
    "nan_and_infinity_stay_where_they_belong": lambda q, k, v, *, mask, scores, scale: attention(
        q, k, v.nan_to_num(), mask, scores, scale
    ),
    "memory_makes_no_difference": lambda q, k, v, *, mask, scores, scale: attention(
        q if q.stride(3) == 1 else q.as_strided(q.shape, (*q.stride()[:3], 1)), k, v, mask, scores, scale
    ),
    "memory_of_a_bias_makes_no_difference": with_bias(ignoring_strides),
    "offsets_past_2_to_the_31_are_reached": lambda q, k, v, *, mask, scores, scale: attention(
        q, k[:1].expand_as(k) if k.stride(0) >= 1 << 31 else k, v, mask, scores, scale
    ),
    "inference_makes_no_difference": lambda q, k, v, *, mask, scores, scale: attention(
        q, k, v, mask, scores, scale, unmasked=torch.is_inference_mode_enabled()
    ),
    "autocast_computes_in_its_dtype": lambda q, k, v, *, mask, scores, scale: attention(
        q, k, v, mask, scores, scale, unmasked=torch.is_autocast_enabled("cpu")
    ),
    "vmap_over_batch_rows_gives_the_same": lambda q, k, v, *, mask, scores, scale: attention(
        q, k, v, mask, scores, scale * (1 if q.shape[0] > 1 else 2)
    ),
    "compiled_code_takes_any_length": lambda q, k, v, *, mask, scores, scale: attention(
        q, k, v, mask, scores, scale * (2 if torch.compiler.is_compiling() else 1)
    ),
    "a_batch_row_alone_is_the_same": lambda q, k, v, *, mask, scores, scale: attention(
        q, k, v if v.shape[0] > 1 else v * 2, mask, scores, scale
    ),
    "changed_masks_are_read": parameters.FAULTS["unlimited side is -1"][0](),
    "changed_scales_are_read": parameters.FAULTS["scale 0"][0](),
    "changed_scores_are_read": parameters.FAULTS["softcap kept by head dim"][0](),
    "some_gradients_are_those_of_all": parameters.FAULTS["dv if k asks"][0](),
}


class _OnceRight(torch.autograd.Function):
    """The identity, whose gradient is taken for a constant."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].detach()


def test_a_second_gradient_that_is_missing_is_found_where_it_is_claimed() -> None:
    def once(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return attention(q, _OnceRight.apply(k), v, mask, scores, scale)

    run = PROPERTIES["second_gradients_are_exact"].run
    failures = list(run(Subject(twice_differentiable(once), dtype="fp32", masks=MASKS)))
    assert "the second gradient of" in failures[0].reason
    with pytest.raises(Refused, match="claims no double backward"):
        list(run(Subject(FunctionBackend(once, "mine"), dtype="fp32", masks=MASKS)))


class _WithLse(FunctionBackend):
    """Right, with an LSE that is off by a factor."""

    def __init__(self, off: float) -> None:
        super().__init__(right, "with an LSE")
        self.off = off

    def prepare(self, case: Case, inputs: Inputs) -> Prepared:
        prepared = super().prepare(case, inputs)
        inner = prepared.forward

        def forward() -> Output:
            group = case.q_heads // case.kv_heads
            k = inputs.k.double().repeat_interleave(group, 1)
            lse = (inputs.q.double() @ k.transpose(-1, -2) * case.softmax_scale).logsumexp(-1)
            return Output(inner().out, (lse * self.off).float())

        prepared.forward = forward  # type: ignore[method-assign]
        return prepared


@pytest.mark.parametrize(("off", "failures"), [(1.0, 0), (1.4427, 1)])  # in base 2
def test_halves_merge_only_by_a_right_lse(off: float, failures: int) -> None:
    subject = Subject(_WithLse(off), dtype="fp32", masks=("full",))
    assert len(list(PROPERTIES["halves_merge_by_lse"].run(subject))) == failures


def test_every_property_has_a_fault_that_breaks_it() -> None:
    elsewhere = {"halves_merge_by_lse", "second_gradients_are_exact", *BY_MUTANTS}
    assert set(PROPERTIES) == {*PROPERTY_FAULTS, *elsewhere}


BY_MUTANTS = {
    "unusual_sizes_are_right": "features past 256 not read",
    "mixed_dtypes_are_refused_or_right": "float32 read as half precision",
}


@pytest.mark.parametrize("name", BY_MUTANTS)
def test_a_property_finds_its_mutant_and_accepts_the_right_one(name: str) -> None:
    subjects = [
        Subject(backend, dtype="bf16", masks=("causal",))
        for backend in (MUTANTS[BY_MUTANTS[name]].backend(), TiledBackend("right"))
    ]
    wrong, right_one = (list(PROPERTIES[name].run(subject)) for subject in subjects)
    assert wrong
    assert not right_one


@pytest.mark.parametrize("name", PROPERTY_FAULTS)
def test_a_property_is_broken_by_the_fault_it_is_there_for(name: str) -> None:
    subject = Subject(FunctionBackend(PROPERTY_FAULTS[name], "faulty"), dtype="fp32", masks=MASKS)
    failures = list(PROPERTIES[name].run(subject))
    assert failures
    assert all(f.reason and f.error_over_budget > 1 for f in failures)


def test_what_a_property_finds_before_a_case_is_refused_is_reported() -> None:
    def gives_up_later(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if q.shape[2] == 129 and not q.any():
            raise NotImplementedError("no such length")
        return attention(q, k, v, mask, scores, scale, strict=True)

    report = check(gives_up_later, only="mask_probe", masks={"causal"}, dtypes={"fp32"}, directions={"fwd"})
    assert {f.check for f in report.failures} == {"mask_probe"}
    assert "may attend" in report.failures[0].reason


def test_calls_that_learn_what_a_function_takes_show_no_property() -> None:
    # Under the full mask no key is unseen, so the property has no case.
    report = check(right, only="unseen_keys_get_no_gradient", masks={"full"}, dtypes={"fp32"})
    assert [(o.status, o.reason) for o in report.outcomes] == [("refused", "takes no case of it")]
