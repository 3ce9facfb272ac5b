"""No result is lost, and a broken file is named."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnbench.errors import StoreError
from attnbench.sweep import Result, Store


def a_result(name: str = "naive", **changes: Any) -> Result:
    return Result(case={"q_len": 8}, case_id="q8", backend=name, **({"status": "ok"} | changes))


def written(folder: Path, *results: Result) -> Store:
    store = Store(folder)
    with store.writing():
        for result in results:
            store.append(result)
    return store


def test_what_is_appended_is_read_back_whole(folder: Path) -> None:
    result = a_result(
        samples_ms={"fwd": [[0.125, 1e-6], [3.0]]},
        rounds=[{"at_s": 0.5, "position": 1, "involuntary_switches": 0}],
        notes=["ein Häkchen ✓"],
        memory_bytes={"fwd_peak": 1 << 40},
    )
    assert written(folder, result, a_result("flex")).read() == [result, a_result("flex")]


def test_an_empty_folder_has_no_results(folder: Path) -> None:
    assert Store(folder).read() == []


def test_a_cut_off_last_line_is_ignored_when_reading_and_nothing_is_changed(folder: Path) -> None:
    store = written(folder, a_result("a"), a_result("b"))
    whole = store.results_file.read_bytes()
    store.results_file.write_bytes(whole[:-7])
    assert [r.backend for r in store.read()] == ["a"]
    assert store.results_file.read_bytes() == whole[:-7]


@pytest.mark.parametrize("kept_bytes", [1, 40, -1])
def test_a_resumed_run_moves_a_cut_off_line_and_appends_after_the_whole_ones(
    folder: Path, kept_bytes: int
) -> None:
    store = written(folder, a_result("a"), a_result("b"))
    first, second = store.results_file.read_bytes().splitlines(keepends=True)
    cut = second[:kept_bytes]
    store.results_file.write_bytes(first + cut)
    with store.writing(resume=True) as message:
        store.append(a_result("c"))
    assert "cut off" in message
    assert [r.backend for r in store.read()] == ["a", "c"]
    assert (folder / "results.jsonl.partial").read_bytes() == cut + b"\n"


def test_a_corrupt_line_is_named_and_nothing_is_lost(folder: Path) -> None:
    store = written(folder, a_result("a"), a_result("b"), a_result("c"))
    lines = store.results_file.read_bytes().splitlines(keepends=True)
    corrupt = lines[0] + lines[1][:20] + b"\n" + lines[2]
    store.results_file.write_bytes(corrupt)
    with pytest.raises(StoreError, match=r"results\.jsonl, line 2, is no result"):
        store.read()
    assert store.results_file.read_bytes() == corrupt


@pytest.mark.parametrize(
    "line",
    [b"[]", b"3", b'{"backend": "a"}', b'{"case": {}, "case_id": "", "backend": "", "status": "fine"}'],
)
def test_json_that_is_no_result_is_corrupt(folder: Path, line: bytes) -> None:
    store = written(folder, a_result("a"))
    store.results_file.write_bytes(line + b"\n" + store.results_file.read_bytes())
    with pytest.raises(StoreError, match="line 1,"):
        store.read()


@pytest.mark.parametrize(
    "changes",
    [
        {"case": "causal"},
        {"samples_ms": {"fwd": "fast"}},
        {"samples_ms": {"fwd": [["1.0"]]}},
        {"samples_ms": {"fwd": [1.0]}},
        {"samples_ms": [[1.0]]},
        {"memory_bytes": {"fwd_peak": "1 GiB"}},
        {"memory_bytes": {"fwd_peak": True}},
        {"error_over_budget": "large"},
        {"errors": {"out": 0.5}},
        {"prepare_ms": {"mask": None}},
        {"flops": {"fwd": [1]}},
        {"notes": "rare"},
        {"rounds": [1]},
        {"backend": None},
        {"seed": "one"},
        {"pairs": 1.5},
    ],
    ids=str,
)
def test_fields_of_another_type_are_corrupt(folder: Path, changes: dict[str, Any]) -> None:
    store = written(folder, a_result("a"))
    record = json.loads(store.results_file.read_text()) | changes
    store.results_file.write_text(json.dumps(record) + "\n")
    with pytest.raises(StoreError, match="line 1,"):
        store.read()


def test_fields_of_a_later_version_do_not_hinder_reading(folder: Path) -> None:
    store = written(folder, a_result("a"))
    record = json.loads(store.results_file.read_text()) | {"watts": 300}
    store.results_file.write_text(json.dumps(record) + "\n")
    assert store.read() == [a_result("a")]


def test_two_runs_do_not_write_one_folder(folder: Path) -> None:
    with (
        Store(folder).writing(),
        pytest.raises(StoreError, match=rf"process {os.getpid()}.*choose another --out"),
    ):
        Store(folder).writing().__enter__()
    with Store(folder).writing():
        pass


def test_stored_results_are_not_added_to_without_resume(folder: Path) -> None:
    store = written(folder, a_result("a"))
    with pytest.raises(StoreError, match="--resume"):
        store.writing().__enter__()
    with store.writing(resume=True) as message:
        assert message == ""


def test_a_full_disk_removes_the_half_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = written(folder, a_result("a"))

    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match="No space left"):
            store.append(a_result("b"))
    store.append(a_result("c"))
    assert [r.backend for r in store.read()] == ["a", "c"]


def test_a_disk_that_is_full_in_the_middle_of_a_line_leaves_whole_lines(folder: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs POSIX limits")
    store = written(folder, a_result("a"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (store.results_file.stat().st_size + 100, before[1]))
    try:
        with pytest.raises(StoreError, match="make room"):
            store.append(a_result("b", notes=["long" * 100]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert store.results_file.read_bytes().count(b"\n") == 1
    with store.writing(resume=True) as message:
        store.append(a_result("c"))
    assert message == ""
    assert [r.backend for r in store.read()] == ["a", "c"]


def test_a_value_that_json_cannot_hold_writes_nothing(folder: Path) -> None:
    store = written(folder, a_result("a"))
    with pytest.raises(ValueError, match="JSON"):
        store.append(a_result("b", error_over_budget=float("nan")))
    assert [r.backend for r in store.read()] == ["a"]


def test_a_second_machine_adds_its_fingerprint_and_the_first_stays(folder: Path) -> None:
    store = written(folder)
    store.add_environment("aaa", {"machine": "one"})
    store.add_environment("bbb", {"machine": "two"})
    store.add_environment("aaa", {"machine": "changed"})
    assert store.environments() == {"aaa": {"machine": "one"}, "bbb": {"machine": "two"}}


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_broken_environment_file_is_named(folder: Path, content: str) -> None:
    store = written(folder)
    store.environment_file.write_text(content)
    with pytest.raises(StoreError, match=r"environment\.json"):
        store.add_environment("aaa", {})


def test_a_result_that_is_not_ok_cannot_carry_samples(a_wrong: Callable[..., Result]) -> None:
    with pytest.raises(ValueError, match="carries no samples"):
        a_wrong(samples_ms={"fwd": [[1.0]]})


@pytest.fixture
def a_wrong() -> Callable[..., Result]:
    return lambda **changes: a_result("a", status="wrong", **changes)
