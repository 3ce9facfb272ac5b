"""A battery covers every factor, keeps to the request, and leaves out what the contract cannot answer."""

from __future__ import annotations

import pytest

from attnbench.backend import Capabilities
from attnbench.conformance.battery import LARGEST_PROJECTION, battery
from attnbench.problem import MASK_KINDS, Case
from attnbench.problem.distributions import DISTRIBUTIONS


def test_dense_backends_get_no_case_in_which_rounding_decides_which_key_wins() -> None:
    def scales(contract: str, dtype: str) -> list[float]:
        cases = battery("exhaustive", dtype, contract=contract)
        return [case.softmax_scale * case.head_dim**0.5 for case, name in cases if name == "large"]

    assert max(scales("flash", "bf16")) > 1
    assert max(scales("dense", "fp32")) > 1
    assert max(scales("dense", "bf16")) < 1.01
    assert scales("dense", "bf16")


def test_a_layer_gets_every_width_but_no_projection_that_takes_seconds() -> None:
    def cases(level: str) -> list[Case]:
        return [case for case, _ in battery(level, "bf16", capabilities=Capabilities(layer_level=True))]

    def projection(case: Case) -> int:
        return case.batch * max(case.q_len, case.k_len) * (case.q_heads * case.head_dim) ** 2

    assert max(projection(case) for case in cases("exhaustive")) > LARGEST_PROJECTION
    assert max(projection(case) for case in cases("standard")) <= LARGEST_PROJECTION
    for value in ("q_heads", "head_dim", "batch"):
        everything = {getattr(case, value) for case, _ in battery("standard", "bf16")}
        assert {getattr(case, value) for case in cases("standard")} == everything


@pytest.mark.parametrize("level", ["smoke", "standard"])
def test_a_battery_covers_every_factor_and_is_the_same_each_time(level: str) -> None:
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


@pytest.mark.parametrize("level", ["smoke", "standard"])
def test_a_battery_asks_a_sink_with_softcap_and_with_a_masked_first_tile_and_alibi_ahead_of_the_query(
    level: str,
) -> None:
    cases = [case for case, _ in battery(level, "bf16")]
    kinds = [(case, {score.kind for score in case.scores}) for case in cases]
    assert any({"softcap", "sink"} <= of_case for _, of_case in kinds)
    assert any("alibi" in of_case and case.mask.kinds == {"full"} for case, of_case in kinds)
    with_sink = [case for case, of_case in kinds if "sink" in of_case]
    allowed = [case.mask.materialize(case.batch, case.q_heads, case.q_len, case.k_len) for case in with_sink]
    assert any(bool((pairs.any(-1) & ~pairs[..., :64].any(-1)).any()) for pairs in allowed)


def test_a_backend_without_sinks_gets_the_same_rows_without_them() -> None:
    without = Capabilities(scores=frozenset({"softcap", "alibi"}))
    cases = [(case, name) for case, name in battery("smoke", "bf16", capabilities=without)]
    assert any(
        case.scores and str(case.scores[0]) == "softcap(1)" and name == "large" for case, name in cases
    )
    assert any(case.v_dim > case.head_dim and case.mask.kinds == {"window"} for case, _ in cases)


@pytest.mark.parametrize("masks", [{"causal"}, {"window", "causal"}, {"causal & window(5, 0)"}])
def test_a_battery_keeps_to_the_masks_of_the_request(masks: set[str]) -> None:
    for case, _ in battery("standard", "fp32", masks=masks):
        assert case.mask.kinds <= masks or str(case.mask) in masks
