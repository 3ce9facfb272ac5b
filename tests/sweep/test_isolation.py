"""A plug-in that crashes, hangs, runs out of memory or is wrong costs its own row and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from attnbench.sweep import Result, Store, run_sweep
from attnbench.sweep.step_errors import step_error_of

NAMES = (
    *("right", "segfaults", "sleeps", "hoards", "is_wrong", "raises", "refuses", "prints", "changes_inputs"),
    *("is_killed", "ends_its_process", "exits"),
)
TIMEOUT_S = 6.0


@pytest.fixture(scope="module")
def swept(
    tmp_path_factory: pytest.TempPathFactory, plans: Callable[..., Any], bad_plug_ins: Callable[[str], str]
) -> dict[tuple[str, int], Result]:
    """All plug-ins over three cases, by name and length; only the first case (16) is the bad one."""
    out = tmp_path_factory.mktemp("isolation")
    before = set(psutil.Process().children(recursive=True))
    run_sweep(
        plans(16, 24),
        [bad_plug_ins(name) for name in NAMES],
        device="cpu",
        out=out,
        timeout_s=TIMEOUT_S,
        memory_limit_bytes=512 << 20,
        rounds=2,
        block_ms=1.0,
    )
    left = set(psutil.Process().children(recursive=True)) - before
    assert not left, "workers outlive the sweep"
    results = Store(out).read()
    assert len(results) == 2 * len(NAMES)
    return {(result.backend.rpartition(":")[2], result.case["q_len"]): result for result in results}


Swept = dict[tuple[str, int], Result]


@pytest.mark.parametrize("name", NAMES)
def test_the_case_after_the_bad_one_is_answered_and_timed(swept: Swept, name: str) -> None:
    result = swept[name, 24]
    assert (result.status, result.reason) == ("ok", "")
    assert len(result.samples_ms["fwd"]) == 2
    assert all(ms > 0 for block in result.samples_ms["fwd"] for ms in block)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("right", "prints")])
def test_what_is_not_ok_has_no_time(swept: Swept, name: str) -> None:
    assert swept[name, 16].status != "ok"
    assert swept[name, 16].samples_ms == {}
    assert swept[name, 16].reason


def test_a_segmentation_fault_is_a_crash_with_its_signal_and_place(swept: Swept) -> None:
    result = swept["segfaults", 16]
    assert result.status == "crashed"
    assert "SIGSEGV" in result.reason
    assert "first forward" in result.reason
    assert "segfaults (bad.py:" in result.reason


def test_a_worker_killed_in_the_middle_of_a_case_is_a_crash(swept: Swept) -> None:
    result = swept["is_killed", 16]
    assert result.status == "crashed"
    assert "SIGKILL" in result.reason


def test_a_process_that_exits_is_a_crash_with_its_last_output(swept: Swept) -> None:
    result = swept["ends_its_process", 16]
    assert result.status == "crashed"
    assert "status 7" in result.reason
    assert "could not find the moon" in result.reason


def test_a_call_that_never_returns_is_a_timeout_that_says_where(swept: Swept) -> None:
    result = swept["sleeps", 16]
    assert result.status == "timeout"
    assert f"{TIMEOUT_S:g} s" in result.reason
    assert "first forward" in result.reason


def test_memory_without_end_is_oom_with_the_size_asked_for(swept: Swept) -> None:
    result = swept["hoards", 16]
    assert result.status == "oom"
    assert "asked for 16 MiB" in result.reason


def test_a_wrong_answer_is_never_timed(swept: Swept) -> None:
    result = swept["is_wrong", 16]
    assert result.status == "wrong"
    assert result.error_over_budget is not None
    assert result.error_over_budget > 1
    assert "out" in result.errors


def test_a_changed_input_is_wrong_though_the_answer_is_right(swept: Swept) -> None:
    result = swept["changes_inputs", 16]
    assert result.status == "wrong"
    assert "in place" in result.reason


def test_an_exception_is_an_error_with_one_line_and_its_place(swept: Swept) -> None:
    result = swept["raises", 16]
    assert result.status == "error"
    assert result.reason.startswith("ValueError: no such head (bad.py:")
    assert "\n" not in result.reason
    assert "Traceback" in result.notes[0]


def test_exit_is_an_error_of_the_plug_in(swept: Swept) -> None:
    assert swept["exits", 16].status == "error"
    assert "sys.exit('enough')" in swept["exits", 16].reason


def test_not_implemented_refuses_the_case(swept: Swept) -> None:
    assert (swept["refuses", 16].status, swept["refuses", 16].reason) == ("refused", "not for 16 queries")


def test_printed_output_is_no_answer_and_stops_nothing(swept: Swept) -> None:
    assert swept["prints", 16].status == "ok"


def test_the_right_one_beside_them_is_complete(swept: Swept) -> None:
    result = swept["right", 16]
    assert result.status == "ok"
    assert result.error_over_budget is not None
    assert result.error_over_budget <= 1
    assert result.memory_bytes["fwd_peak"] > 0
    assert result.clock == "perf_counter_ns"
    assert [len(block) > 0 for block in result.samples_ms["fwd"]] == [True, True]
    assert {r["position"] for r in result.rounds} <= set(range(len(NAMES)))


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:1] . DefaultCPUAllocator: can't allocate memory: "
                         "you tried to allocate 4294967296 bytes. Error code 12"),
            "oom",
            "asked for 4 GiB",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has"), "oom", "asked for 2.50 GiB"),
        (MemoryError(), "oom", "MemoryError"),
        (RuntimeError("CUDA error: an illegal memory access was encountered"), "error", "illegal memory access"),
        (RuntimeError("Triton Error [CUDA]: an illegal memory access was encountered"), "error", "Triton Error"),
    ],
)  # fmt: skip
def test_these_leave_the_worker_unfit_for_the_next_case(error: Exception, status: str, reason: str) -> None:
    step_error = step_error_of(error)
    assert (step_error.status, step_error.fatal) == (status, True)
    assert reason in step_error.reason


def test_a_backend_that_cannot_be_loaded_is_unavailable_in_each_case_and_the_others_run(
    tmp_path: Path, plans: Callable[..., Any]
) -> None:
    path = tmp_path / "broken.py"
    path.write_text("import a_library_that_is_not_there\n\ndef attention(q, k, v, **asked): ...\n")
    results = run_sweep(plans(8, 9), [f"{path}:attention", _right], device="cpu", rounds=1, block_ms=1.0)
    broken = [r for r in results if r.backend != "_right"]
    assert [r.status for r in broken] == ["unavailable"] * 2
    assert all("a_library_that_is_not_there" in r.reason for r in broken)
    assert [r.status for r in results if r.backend == "_right"] == ["ok"] * 2


def test_a_backend_whose_worker_dies_at_each_start_is_given_up_and_the_others_run(
    tmp_path: Path, plans: Callable[..., Any]
) -> None:
    path = tmp_path / "deadly.py"
    path.write_text("import os\nos._exit(3)\n")
    results = run_sweep(plans(8, 9), [f"{path}:attention", _right], device="cpu", rounds=1, block_ms=1.0)
    deadly = [r for r in results if r.backend != "_right"]
    assert [r.status for r in deadly] == ["crashed"] * 2
    assert all("3 starts" in r.reason and "status 3" in r.reason for r in deadly)
    assert [r.status for r in results if r.backend == "_right"] == ["ok"] * 2


def _right(q: Any, k: Any, v: Any, *, mask: Any, scores: Any, scale: float) -> Any:
    return ((q @ k.transpose(-1, -2)) * scale).softmax(-1) @ v
