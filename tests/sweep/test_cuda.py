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


COMPILING = """
import time
from pathlib import Path
from attnbench.backend import AutogradPrepared, Backend, Capabilities

LOG = Path(__file__).with_suffix(".log")

class Compiling(Backend):
    capabilities = Capabilities(contract="dense", compiles=True)
    compiled = False

    def __init__(self, name):
        self.name = name

    def version(self):
        return "1"

    def prepare(self, case, inputs):
        if not self.compiled:
            began = time.time()
            time.sleep(3)
            self.compiled = True
            with LOG.open("a") as log:
                log.write(f"{began} {time.time()}\\n")

        def attention(q, k, v, scores):
            return ((q @ k.transpose(-1, -2)) * case.softmax_scale).softmax(-1) @ v

        return AutogradPrepared(case, inputs, attention)

one, two = Compiling("one"), Compiling("two")
"""


def test_on_a_gpu_the_backends_of_a_case_compile_side_by_side(tmp_path: Path) -> None:
    path = tmp_path / "plug_in.py"
    path.write_text(COMPILING)
    case = ("--seq", "16", "--heads", "1", "--head-dim", "8", "--mask", "full", "--dtype", "fp32")
    names = f"{path}:one,{path}:two"
    out = tmp_path / "out"
    done = attnbench("run", *case, "--device", "cuda", "--backend", names, "--rounds", "1", "--out", str(out))
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [row["status"] for row in rows] == ["ok", "ok"], rows
    spans = [tuple(map(float, line.split())) for line in path.with_suffix(".log").read_text().splitlines()]
    (began, ended), (began_too, ended_too) = spans  # once each: judging finds it compiled
    assert max(began, began_too) < min(ended, ended_too)
