"""Does a battery ask what the contract can answer?"""

from __future__ import annotations

from attnbench.judge.battery import battery


def test_where_rounding_decides_which_key_wins_dense_backends_are_not_asked() -> None:
    def asked(contract: str, dtype: str) -> list[float]:
        found = battery("exhaustive", dtype, contract=contract)
        return [case.softmax_scale * case.head_dim**0.5 for case, name in found if name == "large"]

    assert max(asked("flash", "bf16")) > 1
    assert max(asked("dense", "fp32")) > 1
    assert max(asked("dense", "bf16")) < 1.01
    assert asked("dense", "bf16")
