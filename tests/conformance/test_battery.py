"""Does a battery cover what it says, keep to what it is asked for, and ask what the contract can answer?"""

from __future__ import annotations

import pytest

from attnbench.backend import Capabilities
from attnbench.conformance.battery import LARGEST_PROJECTION, battery
from attnbench.problem import MASK_KINDS, Case
from attnbench.problem.distributions import DISTRIBUTIONS


def test_where_rounding_decides_which_key_wins_dense_backends_are_not_asked() -> None:
    def asked(contract: str, dtype: str) -> list[float]:
        found = battery("exhaustive", dtype, contract=contract)
        return [case.softmax_scale * case.head_dim**0.5 for case, name in found if name == "large"]

    assert max(asked("flash", "bf16")) > 1
    assert max(asked("dense", "fp32")) > 1
    assert max(asked("dense", "bf16")) < 1.01
    assert asked("dense", "bf16")


def test_a_layer_gets_every_width_but_no_projection_that_takes_seconds() -> None:
    def asked(level: str) -> list[Case]:
        return [case for case, _ in battery(level, "bf16", capabilities=Capabilities(layer_level=True))]

    def projection(case: Case) -> int:
        return case.batch * max(case.q_len, case.k_len) * (case.q_heads * case.head_dim) ** 2

    assert max(projection(case) for case in asked("exhaustive")) > LARGEST_PROJECTION
    assert max(projection(case) for case in asked("standard")) <= LARGEST_PROJECTION
    for value in ("q_heads", "head_dim", "batch"):
        everything = {getattr(case, value) for case, _ in battery("standard", "bf16")}
        assert {getattr(case, value) for case in asked("standard")} == everything


@pytest.mark.parametrize("level", ["smoke", "standard"])
def test_a_battery_covers_what_it_says_and_is_the_same_each_time(level: str) -> None:
    cases = battery(level, "bf16")
    assert [(c.id, d) for c, d in cases] == [(c.id, d) for c, d in battery(level, "bf16")]
    assert len({(c.id, d) for c, d in cases}) == len(cases)
    if level == "standard":
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


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_battery_asks_every_kind_of_mask_there_is(dtype: str) -> None:
    assert frozenset().union(*(case.mask.kinds for case, _ in battery("standard", dtype))) == MASK_KINDS


@pytest.mark.parametrize("masks", [{"causal"}, {"window", "causal"}, {"causal & window(5, 0)"}])
def test_a_battery_keeps_to_the_masks_it_is_asked_for(masks: set[str]) -> None:
    for case, _ in battery("standard", "fp32", masks=masks):
        assert case.mask.kinds <= masks or str(case.mask) in masks
