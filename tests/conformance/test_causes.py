"""A fault that public reports describe is named as the first cause, on one case that shows it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.backend.registry import function_backend
from attnbench.conformance import check
from attnbench.conformance.checks import ChecksOfDtype
from attnbench.conformance.diagnosis.diagnosis import guesses
from attnbench.conformance.diagnosis.observation import observe
from attnbench.conformance.explain import OF_ONE_CASE, OF_THE_SMALLEST, Explanation
from attnbench.conformance.plan import plan_of
from attnbench.conformance.report import Report
from attnbench.conformance.subject import Subject
from attnbench.problem import ALiBi, Bias, Case, Explicit, Softcap, parse_mask
from tests.conformance.handed.functions import rounded, weights

Change = Callable[[Tensor, Tensor, Tensor, Tensor, Any, float], Tensor]
Function = Callable[..., Tensor]


def scores_of(s: Tensor, scores: Any) -> Tensor:
    """Softcap, then bias, then ALiBi."""
    for score in scores:
        if score.kind == "softcap":
            s = score.cap * torch.tanh(s / score.cap)
        elif score.kind == "bias":
            s = s + score.tensor.float()
        elif score.kind == "alibi":
            q_len, k_len = s.shape[2:]
            away = (torch.arange(q_len)[:, None] + k_len - q_len - torch.arange(k_len)).abs()
            s = s - torch.tensor(score.slopes_for(s.shape[1]))[:, None, None] * away
    return s


def attention(change: Change) -> Function:
    """A function whose scores, before the mask, are change(q, k, allowed, s, scores, scale); all in float32."""

    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        group = q.shape[1] // k.shape[1]
        k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
        allowed = mask.materialize(*q.shape[:3], k.shape[2]).expand(*q.shape[:3], -1).clone()
        s = change(q.float(), k, allowed, q.float() @ k.mT * scale, scores, scale)
        return (rounded(weights(s, allowed), q.dtype) @ v).to(q.dtype)

    return fn


def masked(change: Callable[[Tensor, Tensor, Any], Tensor]) -> Function:
    """A function whose mask is change(i [Q, 1], j [K], the mask), with p = i + k_len - q_len for i."""

    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        p = torch.arange(q.shape[2])[:, None] + k.shape[2] - q.shape[2]
        allowed = change(p, torch.arange(k.shape[2]), mask).expand(*q.shape[:3], -1)
        group = q.shape[1] // k.shape[1]
        k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
        return (rounded(weights(q.float() @ k.mT * scale, allowed), q.dtype) @ v).to(q.dtype)

    return fn


def window_on_both_sides(p: Tensor, j: Tensor, window: Any) -> Tensor:
    return (p - j).abs() <= window.left


def packed_rows(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """The causal row is row * group + head."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.float().repeat_interleave(group, 1) for x in (k, v))
    rows = torch.arange(q.shape[2])[:, None] * group + (torch.arange(q.shape[1]) % group)[:, None, None]
    allowed = (torch.arange(k.shape[2]) <= rows + k.shape[2] - q.shape[2]).expand(q.shape[0], -1, -1, -1)
    return (rounded(weights(q.float() @ k.mT * scale, allowed), q.dtype) @ v).to(q.dtype)


def first_document_takes_one(p: Tensor, j: Tensor, documents: Any) -> Tensor:
    ends = torch.tensor(documents.lengths).cumsum(0)
    places = torch.arange(max(len(p), len(j)))
    number = torch.where(places < ends[-1], torch.searchsorted(ends, places), -1)
    return (number[: len(p), None] == number[: len(j)]) & (number[: len(j)] >= 0)


def values_tiled(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    group = q.shape[1] // k.shape[1]
    s = q.float() @ k.float().repeat_interleave(group, 1).mT * scale
    allowed = mask.materialize(*q.shape[:3], k.shape[2]).expand(*q.shape[:3], -1)
    return (rounded(weights(s, allowed), q.dtype) @ v.float().repeat(1, group, 1, 1)).to(q.dtype)


def one_more(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    s = torch.nn.functional.pad(q.float() @ k.float().mT * scale, (0, 1))
    return (rounded(s.softmax(-1)[..., :-1], q.dtype) @ v.float()).to(q.dtype)


def without_mask_in_scores(
    q: Tensor, k: Tensor, allowed: Tensor, s: Tensor, scores: Any, scale: float
) -> Tensor:
    s = s + allowed
    allowed[:] = True
    return s


def of_key_head(q: Tensor, k: Tensor, allowed: Tensor, s: Tensor, scores: Any, scale: float) -> Tensor:
    # Two query heads share a key head.
    return s + (scores_of(torch.zeros_like(s), scores))[:, torch.arange(s.shape[1]) // 2]


def bias_with_padded_rows(
    q: Tensor, k: Tensor, allowed: Tensor, s: Tensor, scores: Any, scale: float
) -> Tensor:
    bias = scores[0].tensor.float()
    q_len, k_len = bias.shape[2:]
    at = torch.arange(q_len)[:, None] * (-(-k_len // 8) * 8) + torch.arange(k_len)
    return s + bias.flatten(2)[:, :, at % (q_len * k_len)]


def reversed_bits(q: Tensor, k: Tensor, allowed: Tensor, s: Tensor, scores: Any, scale: float) -> Tensor:
    keys = torch.arange(allowed.shape[-1])
    padded = torch.nn.functional.pad(allowed.clone(), (0, 8))
    allowed[:] = padded[..., keys // 8 * 8 + 7 - keys % 8]
    return s


def alibi_without_cache(
    q: Tensor, k: Tensor, allowed: Tensor, s: Tensor, scores: Any, scale: float
) -> Tensor:
    i, j = torch.arange(s.shape[2])[:, None], torch.arange(s.shape[3])
    cache = s.shape[3] - s.shape[2]
    away = torch.where(j < cache, (i - j).abs(), (i + cache - j).abs())
    return s - torch.tensor(scores[0].slopes_for(s.shape[1]))[:, None, None] * away


class LseOfAllKeys(torch.autograd.Function):
    """P V whose backward divides by the sum over all keys, masked ones as well."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, allowed: Tensor, dtype: torch.dtype) -> Tensor:
        out = rounded(weights(s, allowed), dtype) @ v
        ctx.save_for_backward(s.softmax(-1) * allowed, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dout,) = grads
        p, v, out = ctx.saved_tensors
        ds = p * (dout @ v.mT - (dout * out).sum(-1, keepdim=True))
        return ds, p.mT @ dout, None, None


def lse_of_all_keys(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    allowed = mask.materialize(*q.shape[:3], k.shape[2]).expand(*q.shape[:3], -1)
    s = q.float() @ k.float().mT * scale
    out: Tensor = LseOfAllKeys.apply(s, v.float(), allowed, q.dtype)  # type: ignore[no-untyped-call]
    return out.to(q.dtype)


SIZES: dict[str, Any] = {
    "q_len": 33,
    "k_len": 33,
    "q_heads": 2,
    "kv_heads": 2,
    "head_dim": 32,
    "dtype": "bf16",
}
REPORTED: dict[str, tuple[Function, dict[str, Any], str]] = {
    "window told as heads": (
        masked(window_on_both_sides),
        {"mask": parse_mask("window(9, 3)"), "k_len": 65},
        "the window has its left side on the right as well",
    ),
    "softcap told as rescaling": (
        attention(lambda q, k, allowed, s, scores, scale: scores_of(s / scale, scores) * scale),
        {"scores": (Softcap(1.0),), "scale": 0.3},
        "softcap is applied before the scale: cap * tanh(q k / cap) * scale",
    ),
    "rounded scores told as a maximum": (
        attention(lambda q, k, allowed, s, scores, scale: rounded(q * scale, torch.bfloat16) @ k.mT),
        {"scale": 1.7},
        "q is scaled and rounded to bf16 before the product",
    ),
    "slopes of the key head": (
        attention(of_key_head),
        {"scores": (ALiBi(),), "q_heads": 4},
        "alibi is read by the key head's number",
    ),
    "bias by padded rows": (
        attention(bias_with_padded_rows),
        {"scores": (Bias("bhqk"),)},
        "bias is read with rows padded to a multiple of 8 keys (its row stride is ignored)",
    ),
    "V's heads alone": (
        values_tiled,
        {"q_heads": 6},
        "of V alone: key heads are tiled, not interleaved, over query heads (GQA mapping)",
    ),
    "a key in two splits": (
        attention(
            lambda q, k, allowed, s, scores, scale: (
                s + ((torch.arange(33) % 9 == 0) & (torch.arange(33) > 0)) * math.log(2)
            )
        ),
        {},
        "the first key of each of 4 splits counts twice: splits overlap",
    ),
    "packed groups": (
        packed_rows,
        {"mask": parse_mask("causal"), "q_heads": 6, "k_len": 129},
        "the causal row is that of the packed group: row * group + head (GQA packing)",
    ),
    "a mask of numbers": (
        attention(without_mask_in_scores),
        {"mask": parse_mask("causal")},
        "the mask is added as numbers 0 and 1, not as -inf and 0",
    ),
    "documents off by one": (
        masked(first_document_takes_one),
        {"mask": parse_mask("documents(11, 0, 15)")},
        "a document takes the first token of the next (off by one)",
    ),
    "softmax-one": (
        one_more,
        {},
        "1 is added to the row sum (softmax-one, a sink of 0 that the case does not have)",
    ),
    "keys of a cache skipped": (
        masked(lambda p, j, mask: (j <= p) & (j >= len(j) - len(p))),
        {"mask": parse_mask("causal"), "k_len": 65},
        "the loop over keys starts at k_len - q_len: the keys before it are left out",
    ),
    "no window on the cache": (
        masked(lambda p, j, window: ((j >= p - window.left) | (j < len(j) - len(p))) & (j <= p)),
        {"mask": parse_mask("window(9, 0)"), "k_len": 65},
        "the window is not applied to keys of the cache (before k_len - q_len)",
    ),
    "packed mask bits": (
        attention(reversed_bits),
        {"mask": Explicit((torch.arange(33 * 33).view(33, 33) * 7 % 11 < 6).numpy())},
        "the bits of the packed mask are in reverse order within words of 8",
    ),
    "alibi without the cache": (
        attention(alibi_without_cache),
        {"scores": (ALiBi(),), "k_len": 65},
        "alibi's distances to keys of the cache lack its length, k_len - q_len",
    ),
    "a part of the keys scaled": (
        attention(lambda q, k, allowed, s, scores, scale: torch.where(torch.arange(33) < 16, s, s / scale)),
        {},
        "only the first 16 keys are scaled: the other scores lack the scale",
    ),
    "a part of the features scaled": (
        attention(
            lambda q, k, allowed, s, scores, scale: (
                (q * torch.where(torch.arange(32) < 16, scale, 1.0)) @ k.mT
            )
        ),
        {},
        "only the first 16 features are scaled",
    ),
    "the loop over keys ends at q_len": (
        masked(lambda p, j, mask: (j < len(p)) & (p >= 0)),
        {"k_len": 50},
        "the loop over keys ends at q_len: the keys from there on are left out",
    ),
    "the LSE of masked keys": (
        lse_of_all_keys,
        {"mask": parse_mask("causal"), "direction": "fwd_bwd"},
        "the LSE of the backward is that of all keys, masked ones as well",
    ),
}


@pytest.mark.parametrize("name", REPORTED)
def test_the_cause_of_a_reported_fault_is_named_first(name: str) -> None:
    function, changes, cause = REPORTED[name]
    case = Case(**(SIZES | changes))
    (failure,) = check(function, case=case, level="smoke").failures
    assert failure.causes[0] == cause, failure.causes[:3]


class WrongBackward(torch.autograd.Function):
    """P V whose dS adds delta."""

    @staticmethod
    def forward(ctx: Any, s: Tensor, v: Tensor, dtype: torch.dtype) -> Tensor:
        p = s.softmax(-1)
        out = p.to(dtype).float() @ v
        ctx.save_for_backward(p, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        (dout,) = grads
        p, v, out = ctx.saved_tensors
        return p * (dout @ v.mT + (dout * out).sum(-1, keepdim=True)), p.mT @ dout, None


def delta_added(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    out: Tensor = WrongBackward.apply(q.float() @ k.float().mT * scale, v.float(), q.dtype)  # type: ignore[no-untyped-call]
    return out.to(q.dtype)


def test_a_wrong_step_of_the_backward_is_named_first() -> None:
    (failure,) = check(delta_added, case=Case(**SIZES, direction="fwd_bwd")).failures
    assert failure.causes[0] == "delta is added, not subtracted: dS = P * (dP + delta)"


def test_a_mask_kept_from_an_earlier_call_of_the_same_lengths_is_named() -> None:
    kept: dict[tuple[int, ...], Any] = {}

    def fn(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        mask = kept.setdefault((*q.shape[:3], k.shape[2]), mask)
        return attention(lambda q, k, allowed, s, scores, scale: s)(
            q, k, v, mask=mask, scores=scores, scale=scale
        )

    subject = Subject(function_backend(fn), "cpu", "bf16")
    for text in ("causal", "window(5, 2)"):
        observation = observe(subject, subject.inputs(Case(**SIZES, mask=parse_mask(text))))
    assert not observation.verdict.ok
    words = [guess.words for guess in guesses(subject, observation)]
    assert words[0] == "the mask is that of an earlier call of the same lengths, `causal` (kept by size)"


def test_the_cause_that_explains_most_failures_comes_first() -> None:
    # One key per row leaves many causes open; more keys leave one.
    function, _, cause = REPORTED["V's heads alone"]
    where = "q_heads == 6 and q_len == k_len and k_len in (1, 63) and head_dim == 64 and v_dim == 64"
    report = check(
        function,
        level="smoke",
        dtypes={"bf16"},
        masks={"full"},
        where=where,
        only={"oracle"},
        directions={"fwd"},
    )
    assert {failure.case.k_len for failure in report.failures} == {1, 63}
    wrong = [failure for failure in report.failures if cause in failure.causes]
    assert wrong, str(report)
    assert all(failure.causes[0] == cause for failure in wrong)


def checks_of(function: Function) -> ChecksOfDtype:
    plan = plan_of(function, level="smoke", dtypes={"bf16"}, only={"oracle"})
    return ChecksOfDtype(plan, Report(plan.backend.name, "smoke", "cpu", 0, plan.contract), "bf16")


def test_a_cause_of_one_failure_that_does_not_explain_another_is_told_of_its_case_alone() -> None:
    def change(q: Tensor, k: Tensor, allowed: Tensor, s: Tensor, scores: Any, scale: float) -> Tensor:
        if s.shape[2] == 33:
            return s.masked_fill(torch.arange(33) >= 16, -math.inf)
        return s + 3 * torch.sin(torch.arange(s.numel()) * 1.7).view(s.shape)

    checks = checks_of(attention(change))
    for length in (33, 48):
        checks.run_on("oracle", Case(**(SIZES | {"q_len": length, "k_len": length})), "randn")
    checks.explainer.rank_causes()
    first, second = (failure.causes for failure in checks.report.failures)
    assert first[0] == f"only the first 16 keys are read {OF_ONE_CASE}", first
    # Few keys leave causes open that do not show on more.
    assert all(OF_THE_SMALLEST in words or words.startswith("no known pattern") for words in second), second


def test_a_rival_that_explains_another_failure_replaces_a_cause_that_does_not() -> None:
    explainer = checks_of(values_tiled).explainer
    open_case = Explanation(("first", "second"), frozenset({"first", "second"}), set(), True)
    other_case = Explanation(("second",), frozenset({"second"}), {"first"}, True)
    explainer._explanations += [open_case, other_case]
    assert explainer._ranked(open_case) == ("second",)
    assert explainer._ranked(other_case) == ("second",)


def test_without_an_explanation_no_cause_is_invented() -> None:
    def noisy(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        right = attention(lambda q, k, allowed, s, scores, scale: s)(
            q, k, v, mask=mask, scores=scores, scale=scale
        )
        odd = torch.sin(torch.arange(right.numel()) * 1.7).view(right.shape)
        return (right.float() + odd).to(q.dtype)

    (failure,) = check(noisy, case=Case(**SIZES, mask=parse_mask("causal"))).failures
    assert failure.causes[0].startswith("no known pattern"), failure.causes
