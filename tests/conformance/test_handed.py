"""Kernels that take a slice of attention are found wrong by their fault, and right ones right."""

from __future__ import annotations

import pytest

from attnbench.conformance import check
from tests.conformance.handed.functions import (
    Function,
    anything,
    at_most_128,
    dp_over_head_dim,
    first_batch_row,
    is_causal,
    is_decoding,
    is_fixed,
    is_full_in_tiles,
    low_accumulator,
    multiples_of_8,
    power_of_two_groups,
    short_tail,
    softcap_by_powers,
    that_takes,
    tiled_heads,
    with_strides_of_v,
    without_itself,
)

# Small cases, to be quick: the verdict must not need the large ones.
SMALL = "batch <= 3 and q_len <= 130 and k_len <= 130 and q_heads <= 8 and head_dim <= 64 and v_dim <= 96"
HEADS, ROWS, TAIL = "(GQA mapping)", "batch row 0", "ragged tile of 16 keys is left out"
WRONG: dict[str, tuple[Function, str]] = {
    "heads tiled in decoding": (that_takes(is_decoding, tiled_heads), HEADS),
    "keys of batch row 0 in decoding": (that_takes(is_decoding, first_batch_row), ROWS),
    "no tail in decoding": (that_takes(is_decoding, short_tail), TAIL),
    "heads tiled, causal": (that_takes(is_causal, tiled_heads), HEADS),
    "keys of batch row 0, causal": (that_takes(is_causal, first_batch_row), ROWS),
    "no tail, causal": (that_takes(is_causal, short_tail), TAIL),
    "heads tiled, one length": (that_takes(is_fixed, tiled_heads), HEADS),
    "keys of batch row 0, one length": (that_takes(is_fixed, first_batch_row), ROWS),
    "no tail, one length": (that_takes(is_fixed, short_tail), TAIL),
    "a query does not attend itself": (that_takes(is_causal, without_itself), "of 64 does not attend itself"),
    "accumulator in bf16": (that_takes(is_full_in_tiles, low_accumulator), "accumulator"),
    "dP over head_dim": (that_takes(anything, dp_over_head_dim), "dP is summed over head_dim"),
    "features past a multiple of 8": (
        that_takes(anything, multiples_of_8),
        "past the last multiple of 8",
    ),
    "k by v's strides": (that_takes(anything, with_strides_of_v), "k's strides"),
    "softcap by exp": (softcap_by_powers, "tanh is written with exp"),
}
QUICK = ("no tail in decoding", "features past a multiple of 8")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in WRONG]
)
def test_a_fault_of_a_narrow_kernel_is_found_and_named(name: str) -> None:
    function, cause = WRONG[name]
    checks = ("strides_make_no_difference",) if "strides" in name else ("oracle",)
    report = check(function, dtypes={"bf16"}, where=SMALL, only=checks)
    assert report.verdict == "wrong", str(report)
    assert not report.limits
    assert cause in " ".join(report.failures[0].causes[:2]), report.failures[0].causes
    for failure in report.failures:
        assert len(set(failure.causes)) == len(failure.causes)


@pytest.mark.slow  # about 15 minutes of one core
@pytest.mark.parametrize("name", WRONG)
def test_a_fault_of_a_narrow_kernel_is_found_without_a_condition(name: str) -> None:
    function, cause = WRONG[name]
    report = check(function, dtypes={"bf16"})
    assert report.verdict == "wrong", str(report)
    assert cause in " ".join(" ".join(f.causes[:2]) for f in report.failures)


CASES: dict[str, dict[str, object]] = {  # on which the fault of the slower checks shows
    "a query does not attend itself": {"q_len": 130, "k_len": 130, "mask": "causal"},
    "accumulator in bf16": {"q_len": 64, "k_len": 128, "distribution": "sign_flipped_v"},
    "dP over head_dim": {"q_len": 17, "k_len": 33, "v_dim": 24, "direction": "fwd_bwd"},
    "softcap by exp": {
        "q_len": 17,
        "k_len": 33,
        "scores": ["softcap(1)"],
        "distribution": "large",
        "direction": "fwd",
    },
    "keys of batch row 0 in decoding": {"batch": 3, "q_len": 1, "k_len": 65, "mask": "causal"},
    "no tail, causal": {"q_len": 40, "k_len": 40, "mask": "causal"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_cause_is_named_on_one_case_that_shows_it(name: str) -> None:
    function, cause = WRONG[name]
    fields = {"q_heads": 2, "head_dim": 16, "dtype": "bf16"} | CASES[name]
    distribution = str(fields.pop("distribution", "randn"))
    report = check(function, case=fields, distribution=distribution)
    assert report.failures, str(report)
    assert cause in " ".join(report.failures[0].causes[:2]), report.failures[0].causes


def test_the_strides_of_k_alone_are_a_cause() -> None:
    function, cause = WRONG["k by v's strides"]
    small = "batch <= 2 and q_len <= 65 and k_len <= 65"
    only = {"strides_make_no_difference"}
    report = check(function, dtypes={"bf16"}, masks={"full"}, directions={"fwd"}, where=small, only=only)
    assert cause in report.failures[0].causes[0]
    assert small in report.failures[0].command
    assert "full" in report.failures[0].command


def test_a_crash_for_every_group_of_3_is_a_suspected_limit() -> None:
    function = that_takes(is_decoding, power_of_two_groups)
    report = check(function, dtypes={"bf16"}, where=SMALL)
    assert report.verdict == "right", str(report)
    (limit,) = report.limits
    assert limit.factor == "heads"
    assert "6:2" in limit.values
    assert "8:2" not in limit.values
    assert "right but for 1 suspected limit" in str(report)
    assert "power of 2" in str(report)
    assert report.to_json()["limits"][0]["factor"] == "heads"


def test_an_assertion_on_the_head_dim_is_a_suspected_limit() -> None:
    small = "batch <= 2 and q_len <= 65 and k_len <= 65 and head_dim in (64, 256)"
    report = check(
        that_takes(anything, at_most_128),
        dtypes={"bf16"},
        directions={"fwd"},
        masks={"full"},
        where=small,
        only={"oracle"},
    )
    assert report.verdict == "right", str(report)
    assert [(limit.factor, "256" in limit.values) for limit in report.limits] == [("head_dims", True)]
