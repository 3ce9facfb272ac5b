"""A check tells its steps, ends in time, and goes on from what another process did."""

from __future__ import annotations

import json
from typing import Any

import pytest
from torch import Tensor

from attnbench.conformance import check
from attnbench.conformance.conformance import report_of, run_checks
from attnbench.conformance.plan import plan_of
from attnbench.conformance.report import Report
from attnbench.conformance.steps import CheckProgress, Record, Steps
from tests.conformance.functions import right, with_fault

QUICK: dict[str, Any] = {"level": "smoke", "dtypes": {"fp32"}, "directions": {"fwd"}}
SMALL = "batch <= 2 and q_len <= 65 and k_len <= 65"


def run(fn: Any, steps: Steps) -> Report:
    # A step that changes the search for another contract is done again: there is none here.
    plan = plan_of(fn, where=SMALL, contract="flash", **QUICK)
    report = report_of(plan, None)
    run_checks(plan, report, steps, None, "randn", False)
    return report


def test_progress_tells_the_next_case_and_the_failures_so_far() -> None:
    told: list[CheckProgress] = []
    report = check(with_fault(strict=True), where=SMALL, progress=told.append, **QUICK)
    assert [one.check for one in told].count("protocol") == 1
    assert told[0].failed == 0
    assert 0 < told[-1].failed <= len(report.failures)
    assert all(one.case_id for one in told)


def test_at_the_time_limit_the_report_has_what_was_found_and_is_not_right() -> None:
    report = check(right, time_limit_s=0.0, **QUICK)
    assert (report.verdict, report.ok) == ("too little checked", False)
    assert "stopped by the time limit" in str(report)


def test_ctrl_c_carries_the_report_so_far() -> None:
    calls = 0

    def interrupted(q: Tensor, k: Tensor, v: Tensor, *, mask: Any, scores: Any, scale: float) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 3:
            raise KeyboardInterrupt
        return right(q, k, v, mask=mask, scores=scores, scale=scale)

    with pytest.raises(KeyboardInterrupt) as caught:
        check(interrupted, where=SMALL, **QUICK)
    assert "stopped by Ctrl-C" in caught.value.__notes__[0]


@pytest.mark.parametrize("fn", [right, with_fault(tiled=True)])
def test_a_second_process_repeats_no_step_and_comes_to_the_same_report(fn: Any) -> None:
    done: dict[str, Record] = {}
    first = run(fn, Steps(on_done=lambda step, record: done.update({step: json.loads(json.dumps(record))})))

    def not_again(*_: Any, **__: Any) -> Tensor:
        raise AssertionError("called again")

    second = run(not_again, Steps(done=done))
    assert [o.record() for o in second.outcomes] == [o.record() for o in first.outcomes]
    assert [str(f) for f in second.failures] == [str(f) for f in first.failures]


def test_a_call_that_ended_a_process_is_a_failure_and_the_rest_goes_on() -> None:
    calls: list[Record] = []
    plain = run(right, Steps(on_call=lambda call: calls.append(call) if call else None))
    crash = calls[len(calls) // 3]
    words = "crashed: killed by SIGSEGV"
    report = run(right, Steps(crashed={crash["key"]: crash | {"words": words}}))
    assert report.verdict == "wrong"
    assert not report.limits
    assert {f.reason for f in report.failures} == {words}
    assert words in str(report)
    passed = sum(o.status == "ok" for o in report.outcomes)
    assert passed >= sum(o.status == "ok" for o in plain.outcomes) - 1
