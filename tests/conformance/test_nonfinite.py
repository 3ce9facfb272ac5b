"""NaN and infinity: what must be spoiled, what may be, and what a promise makes of it."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from attnbench.backend import Capabilities, FunctionBackend
from attnbench.conformance import check
from attnbench.conformance.properties.all import PROPERTIES
from attnbench.conformance.properties.nonfinite import FACT, POISONS, _poisoned, sets_of
from attnbench.conformance.subject import Refused, Subject, allowed_pairs
from attnbench.problem import Case, Causal, Padding, make_inputs
from tests.conformance.functions import attention, right

NAME = "nan_and_infinity_stay_where_they_belong"
MASKS = ("causal", "padding")
IGNORED = Capabilities(masked_nan="ignored")


def ignoring(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
    """Right, and each row computes with the keys that it may attend alone."""
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2]).expand(*q.shape[:3], -1)
    rows = []
    for i in range(q.shape[2]):
        may = allowed[:, :, i, :, None].expand(*k.shape[:2], k.shape[2], 1)
        one = attention(
            q[:, :, i : i + 1],
            k.where(may, 0),
            v.where(may, 0),
            _Given(allowed[:, :, i : i + 1]),
            scores,
            scale,
        )
        rows.append(one)
    return torch.cat(rows, 2)


class _Given:
    def __init__(self, allowed: Tensor) -> None:
        self.allowed = allowed

    def materialize(self, *sizes: int) -> Tensor:
        return self.allowed


def run(fn: Any, capabilities: Capabilities = Capabilities(), dtype: str = "fp32") -> tuple[list[Any], str]:
    subject = Subject(FunctionBackend(fn, "mine", capabilities), dtype=dtype, masks=MASKS)
    return list(PROPERTIES[NAME].run(subject)), subject.facts.get(FACT, "")


@pytest.mark.parametrize(
    ("fn", "promise", "failures", "fact"),
    [
        (right, Capabilities(), 0, "that of k and v reaches rows that may not attend it"),
        (ignoring, Capabilities(), 0, "changes nothing for them"),
        (ignoring, IGNORED, 0, "changes nothing for them"),
    ],
)
def test_a_function_is_told_what_it_does_and_held_to_what_it_promises(
    fn: Any, promise: Capabilities, failures: int, fact: str
) -> None:
    found, told = run(fn, promise)
    assert len(found) == failures
    assert told.startswith(fact)


def test_a_promise_to_ignore_masked_nan_is_kept_or_wrong() -> None:
    failures, _ = run(right, IGNORED)
    assert "through a masked place" in failures[0].reason
    assert "0 * NaN" in failures[0].causes[0]


def test_what_refuses_nan_is_not_wrong() -> None:
    def strict(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        if not all(bool(x.isfinite().all()) for x in (q, k, v)):
            raise ValueError("an input is not finite")
        return right(q, k, v, mask=mask, scores=scores, scale=scale)

    with pytest.raises(Refused, match="with NaN in q, k or v it raises ValueError"):
        run(strict)


def test_a_function_that_drops_nan_from_its_inputs_is_wrong() -> None:
    def drops(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        return attention(q, k, v.nan_to_num(), mask, scores, scale)

    failures, _ = run(drops)
    assert "makes it non-finite" in failures[0].reason


def test_the_report_tells_the_fact_and_stays_right() -> None:
    report = check(right, only=NAME, masks={"causal"}, dtypes={"fp32"})
    assert report.ok
    assert re.search(f"{FACT}: that of (k and )?v reaches", str(report))
    assert report.to_json()["facts"] == report.facts


@pytest.mark.parametrize("mask", [Causal(), Padding((7, 0))])
def test_the_sets_enclose_what_ieee_arithmetic_gives(mask: Any) -> None:
    case = Case(batch=2, q_len=9, k_len=9, q_heads=8, kv_heads=4, head_dim=8, dtype="fp32", mask=mask)
    inputs, allowed = make_inputs(case), allowed_pairs(case)
    poisons = {(b, h): POISONS[4 * b + h] for b in range(2) for h in range(4)}
    poisoned = _poisoned(inputs, poisons, allowed)
    bad = {name: ~getattr(poisoned, name).isfinite() for name in "qkv"}
    is_nan = {name: getattr(poisoned, name).isnan() for name in "qkv"}
    sets = sets_of(case, bad, is_nan, allowed)
    q, k, v = (x.double() for x in (poisoned.q, poisoned.k, poisoned.v))
    k, v = k.repeat_interleave(2, 1), v.repeat_interleave(2, 1)
    # Masked pairs left out: one query and the keys that it may attend at a time.
    left_out = torch.zeros(2, 8, 9, 8, dtype=torch.float64)
    for b, h, i in torch.cartesian_prod(torch.arange(2), torch.arange(8), torch.arange(9)).tolist():
        may = allowed[b, h, i]
        if may.any():
            p = torch.softmax(k[b, h][may] @ q[b, h, i] * case.softmax_scale, 0)
            left_out[b, h, i] = p @ v[b, h][may]
    # Masked pairs with weight 0: the scores by a sum, the values by a product.
    s = q @ k.transpose(-1, -2) * case.softmax_scale + torch.zeros(()).where(allowed, -math.inf)
    multiplied = torch.softmax(s, -1) @ v
    assert bool((~left_out.isfinite())[sets.must["out"]].all())
    assert not bool((~left_out.isfinite() & ~sets.may["out"]).any())
    some = allowed.any(-1, keepdim=True)
    assert not bool((~multiplied.isfinite() & some & ~sets.may_spread["out"]).any())
    assert bool((~multiplied.isfinite() & ~sets.may["out"]).any())
