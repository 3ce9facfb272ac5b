"""Does a battery ask what the contract can answer?"""

from __future__ import annotations

from attnbench.backend import Capabilities
from attnbench.judge.battery import LARGEST_PROJECTION, battery
from attnbench.problem import Case


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
