"""A whole sweep on a GPU, on the fake device of tests/stand: every step of a worker, rows that are right and timed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.stand.machine import attnbench

BACKENDS = ("naive", "per_head", "mask_multiply", "sdpa_flash")
CASE = ("--seq", "64", "--heads", "2", "--head-dim", "16", "--mask", "causal", "--direction", "fwd_bwd")


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The rows of four backends on cuda, and of one on the second device."""
    found = {}
    for device, backends in (("cuda", BACKENDS), ("cuda:1", ("naive",))):
        out = tmp_path_factory.mktemp("sweep") / "out"
        words = ["--device", device, "--backend", ",".join(backends), "--rounds", "1", "--out", str(out)]
        done = attnbench("run", *CASE, *words)
        assert done.returncode == 0, done.stderr
        lines = (out / "results.jsonl").read_text().splitlines()
        found[device] = [json.loads(line) for line in lines]
    return found


def test_every_row_is_right(rows: dict[str, list[dict[str, Any]]]) -> None:
    every = [row for of_device in rows.values() for row in of_device]
    assert [(row["status"], row["reason"]) for row in every] == [("ok", "")] * (len(BACKENDS) + 1)
    assert {row["case"]["dtype"] for row in every} == {"bf16"}
    assert {row["backend"] for row in rows["cuda"]} == set(BACKENDS)


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_the_events_are_of_the_device_that_computes(
    rows: dict[str, list[dict[str, Any]]], device: str
) -> None:
    for row in rows[device]:
        assert set(row["samples_ms"]) == {"fwd", "bwd"}
        assert all(ms > 0 for rounds in row["samples_ms"].values() for block in rounds for ms in block)


def test_the_kernels_that_ran_are_named_and_no_call_of_the_host(
    rows: dict[str, list[dict[str, Any]]],
) -> None:
    kernels = {row["backend"]: row["kernel"] for row in rows["cuda"]}
    assert "flash_fwd_kernel" in kernels["sdpa_flash"]
    assert not [kernel for kernel in kernels.values() if "cudaDeviceSynchronize" in kernel]


def test_a_device_that_this_machine_lacks_is_refused_at_once(tmp_path: Path) -> None:
    done = attnbench("run", *CASE, "--device", "cuda:7", "--backend", "naive", "--out", str(tmp_path / "out"))
    assert done.returncode == 2
    assert "no device 'cuda:7' on this machine, which has cuda:0, cuda:1" in done.stderr
