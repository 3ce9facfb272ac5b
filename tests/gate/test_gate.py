"""The gate fails what is worse, passes what is the same, and refuses what cannot be compared."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from attnbench.errors import NotComparable, UnknownBackend
from attnbench.gate import gate

MIB = 1 << 20


def kinds(verdict: Any) -> list[str]:
    return [finding.kind for finding in verdict.findings]


def test_an_identical_copy_passes(result: Any, result_set: Any) -> None:
    both = result_set(
        result(), result("q128-causal-fwd"), result(backend="flex", status="refused", reason="no")
    )
    verdict = gate(both, both, margin=0.05)
    assert set(kinds(verdict)) == {"same"}
    assert verdict.exit_code(strict=True) == 0


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"status": "wrong", "samples_ms": {}, "reason": "out is off"}, "wrong"),
        ({"status": "refused", "samples_ms": {}, "reason": "no causal mask"}, "missing"),
        ({"status": "unavailable", "samples_ms": {}}, "missing"),
        ({"status": "crashed", "samples_ms": {}, "reason": "signal 11"}, "broken"),
        ({"status": "timeout", "samples_ms": {}}, "broken"),
        ({"status": "oom", "samples_ms": {}}, "broken"),
        ({"status": "error", "samples_ms": {}}, "broken"),
        ({"samples_ms": {}}, "missing"),
        ({"memory_bytes": {}}, "missing"),
        ({"memory_bytes": {"fwd_peak": 70 * MIB}}, "bigger"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_planted_fault_fails_and_is_named(result: Any, result_set: Any, changes: Any, kind: str) -> None:
    other = result("q128-causal-fwd", "flex")
    base = result_set(result(), other)
    verdict = gate(base, result_set(replace(result(), **changes), other))
    assert [(f.kind, f.case, f.backend) for f in verdict.failures] == [(kind, "q64-full-fwd", "naive")]
    assert verdict.exit_code() == 1


def test_a_change_to_a_wider_contract_is_less_accurate(result: Any, result_set: Any) -> None:
    note = "right under the dense contract; not under flash: scores are rounded to bf16"
    flash, dense = result(contract="flash"), result(contract="dense", notes=[note])
    (finding,) = gate(result_set(flash), result_set(dense)).failures
    assert finding.kind == "less accurate"
    assert "scores are rounded to bf16" in finding.message
    for base in (dense, result(contract="")):
        assert not gate(result_set(base), result_set(flash)).failures


def test_a_case_that_is_gone_fails(result: Any, result_set: Any) -> None:
    verdict = gate(result_set(result(), result(backend="flex")), result_set(result()))
    assert [(f.kind, f.backend) for f in verdict.failures] == [("missing", "flex")]


def test_a_new_case_passes_unless_it_is_wrong(result: Any, result_set: Any) -> None:
    base = result_set(result())
    assert gate(base, result_set(result(), result("q1-new-fwd"))).exit_code(strict=True) == 0
    assert gate(base, result_set(result(), result("q1-new-fwd", status="wrong"))).exit_code() == 1


def test_what_was_wrong_before_still_fails(result: Any, result_set: Any) -> None:
    both = result_set(result(status="wrong"))
    assert kinds(gate(both, both)) == ["wrong"]


def test_a_backend_that_neither_has_is_named(result: Any, result_set: Any) -> None:
    both = result_set(result())
    with pytest.raises(
        UnknownBackend, match=r"neither has results of 'naiv'; did you mean 'naive'\?; there are naive"
    ):
        gate(both, both, backends=["naiv"])


def test_what_is_broken_in_both_was_not_judged(result: Any, result_set: Any) -> None:
    both = result_set(result(status="error", reason="no such symbol"))
    verdict = gate(both, both)
    assert kinds(verdict) == ["inconclusive"]
    assert "judged in neither: error (no such symbol)" in verdict.findings[0].message
    assert verdict.exit_code() == 0
    assert verdict.exit_code(strict=True) == 1


def test_what_was_broken_before_and_is_right_now_passes(result: Any, result_set: Any) -> None:
    verdict = gate(result_set(result(status="crashed")), result_set(result()))
    assert verdict.exit_code(strict=True) == 0


@pytest.mark.parametrize(
    ("factor", "kind"), [(1.0, "same"), (1.04, "same"), (1.2, "slower"), (0.7, "faster")]
)
def test_speed_is_judged_by_the_ratio(
    result: Any, result_set: Any, rounds: Any, factor: float, kind: str
) -> None:
    head = result(samples_ms={"fwd": rounds(factor, seed=8)})
    assert kinds(gate(result_set(result()), result_set(head), margin=0.1)) == [kind]


def test_one_process_a_side_can_only_advise(result: Any, result_set: Any, rounds: Any) -> None:
    base, head = result(rounds=[]), result(rounds=[], samples_ms={"fwd": rounds(1.5, seed=8)})
    verdict = gate(result_set(base), result_set(head), margin=0.1)
    assert kinds(verdict) == ["suspect"]
    assert verdict.exit_code() == 0


def test_processes_that_do_not_agree_can_only_advise(result: Any, result_set: Any, rounds: Any) -> None:
    slow = rounds(1.5, seed=8)
    verdict = gate(
        result_set(result()), result_set(result(samples_ms={"fwd": [*rounds(1.0)[:2], *slow[2:]]}))
    )
    assert kinds(verdict) == ["suspect"]


def test_a_slow_backward_is_found_where_the_forward_is_the_same(
    result: Any, result_set: Any, rounds: Any
) -> None:
    base = result(samples_ms={"fwd": rounds(1.0), "bwd": rounds(2.0)})
    head = result(samples_ms={"fwd": rounds(1.0), "bwd": rounds(2.6)})
    verdict = gate(result_set(base), result_set(head))
    assert [(f.kind, f.which) for f in verdict.failures] == [("slower", "bwd")]


def test_a_noisy_difference_is_a_warning_and_fails_only_when_strict(
    result: Any, result_set: Any, rounds: Any
) -> None:
    base = result(samples_ms={"fwd": rounds(1.0, spread=0.8, seed=1)})
    head = result(samples_ms={"fwd": rounds(1.15, spread=0.8, seed=1)})
    verdict = gate(result_set(base), result_set(head))
    assert kinds(verdict) == ["inconclusive"]
    assert (verdict.exit_code(), verdict.exit_code(strict=True)) == (0, 1)


def test_few_samples_make_a_large_slow_down_suspect_only(result: Any, result_set: Any) -> None:
    def verdict(head_ms: float) -> list[str]:
        base, head = (
            result(samples_ms={"fwd": [[1.0], [1.1]]}),
            result(samples_ms={"fwd": [[head_ms], [head_ms]]}),
        )
        return kinds(gate(result_set(base), result_set(head)))

    assert verdict(3.0) == ["suspect"]
    assert verdict(1.25) == ["inconclusive"]
    assert verdict(1.05) == ["same"]


def test_memory_may_grow_by_one_percent_and_two_mebibytes(result: Any, result_set: Any) -> None:
    base = result_set(result(memory_bytes={"fwd_peak": 100 * MIB}))
    assert gate(base, result_set(result(memory_bytes={"fwd_peak": 103 * MIB}))).exit_code() == 0
    assert gate(base, result_set(result(memory_bytes={"fwd_peak": 103 * MIB + 1}))).exit_code() == 1


def test_sets_without_a_common_case_are_not_comparable(result: Any, result_set: Any) -> None:
    with pytest.raises(NotComparable, match="no case in common"):
        gate(result_set(result("a")), result_set(result("b")))
    with pytest.raises(NotComparable):
        gate(result_set(), result_set(result()))


def test_unlike_machines_are_not_comparable_unless_asked(result: Any, result_set: Any) -> None:
    base, head = result_set(result()), result_set(result(environment="there"))
    with pytest.raises(NotComparable, match=r"threads: 2 and 64.*--allow-unlike"):
        gate(base, head)
    verdict = gate(base, head, allow_unlike=True)
    assert verdict.exit_code() == 0
    assert verdict.unlike == ("threads: 2 and 64",)


def test_results_without_a_fingerprint_are_not_comparable(result: Any, result_set: Any) -> None:
    both = result_set(result(environment=""))
    with pytest.raises(NotComparable, match="no fingerprint"):
        gate(both, both)


def test_only_the_chosen_backends_are_gated(result: Any, result_set: Any) -> None:
    base = result_set(result(), result(backend="flex"))
    head = result_set(result(), result(backend="flex", status="wrong"))
    assert gate(base, head, backends=["naive"]).exit_code() == 0
    assert gate(base, head, backends=["flex"]).exit_code() == 1


def test_the_worst_comes_first(result: Any, result_set: Any, rounds: Any) -> None:
    base = result_set(result("a"), result("b"), result("c"))
    head = result_set(result("a"), result("b", samples_ms={"fwd": rounds(2.0)}), result("c", status="wrong"))
    assert kinds(gate(base, head)) == ["wrong", "slower", "same"]
