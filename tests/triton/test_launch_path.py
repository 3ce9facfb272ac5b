"""Compiled kernels go through Triton's launch path on a driver without a GPU; their tensor maps keep TMA's rules."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import triton

from tests.stand.machine import ROOT

STAND = ROOT / "tests" / "stand"
# Together they launch every kernel; the others are of the same kernels with other masks and sizes.
FEW = ("bf16-d64-causal", "bf16-d64-full-bias", "bf16-d128-decode")
KERNELS = ("forward", "delta", "dk_dv", "dq", "decode", "combine", "bias_gradient")
pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="the driver is compiled by gcc")


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The driver's library."""
    folder = tmp_path_factory.mktemp("driver")
    headers = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    command = ["gcc", "-shared", "-fPIC", "-w", "-Wl,-soname,libcuda.so.1", "-I", str(headers)]
    subprocess.run(
        [*command, str(STAND / "libcuda.c"), "-o", str(folder / "libcuda.so.1")],
        check=True,
        capture_output=True,
    )
    return folder / "libcuda.so.1"


@pytest.fixture(scope="module")
def launched(driver: Path) -> tuple[dict[str, str], list[str]]:
    """Why each case failed ("" if it did not), and the driver's log."""
    folder = driver.parent
    environment: dict[str, Any] = os.environ | {
        "TRITON_LIBCUDA_PATH": str(folder),
        "TRITON_CACHE_DIR": str(folder / "cache"),
        "STUB_LOG": str(folder / "log"),
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        [sys.executable, str(STAND / "launch.py"), *FEW, "misaligned"],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {row["name"]: row["failed"] for row in rows}, (folder / "log").read_text().splitlines()


def test_every_kernel_is_launched(launched: tuple[dict[str, str], list[str]]) -> None:
    failed, log = launched
    assert {name: failed[name] for name in FEW} == dict.fromkeys(FEW, "")
    for kernel in KERNELS:
        assert any(line.startswith(f"launch {kernel}_kernel ") for line in log), kernel


def test_tensor_maps_keep_the_rules_and_misaligned_tensors_have_none(
    launched: tuple[dict[str, str], list[str]],
) -> None:
    failed, log = launched
    assert log.count("map") > len(FEW)
    assert [line for line in log if line.startswith("map refused")] == []
    assert failed["misaligned"] == ""


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, ""),
        ({"address": (1 << 20) + 8}, "the address is not a multiple of 16"),
        ({"stride": 120}, "a stride is not a multiple of 16"),
        ({"box": (64, 512)}, "a side of the box is not 1 to 256"),
        ({"box": (4, 64)}, "the box's inner side is not a multiple of 16 bytes"),
        ({"box": (128, 64)}, "the box's inner side exceeds the swizzle"),
        ({"size": (128, 0)}, "a size is not 1 to 2^32"),
    ],
)
def test_the_driver_refuses_a_tensor_map_that_breaks_a_rule(
    driver: Path, changes: dict[str, Any], words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of a bf16 matrix of 512 rows of 128, in boxes of 64 x 64 elements swizzled over 128 bytes."""
    asked: dict[str, Any] = {"address": 1 << 20, "size": (128, 512), "stride": 256, "box": (64, 64)} | changes
    long_, int_ = ctypes.c_uint64, ctypes.c_uint32
    answer = ctypes.CDLL(str(driver)).cuTensorMapEncodeTiled(
        ctypes.create_string_buffer(128),
        9,  # bf16
        2,
        ctypes.c_void_p(asked["address"]),
        (long_ * 2)(*asked["size"]),
        (long_ * 1)(asked["stride"]),
        (int_ * 2)(*asked["box"]),
        (int_ * 2)(1, 1),
        0,
        3,  # 128 bytes
        0,
        0,
    )
    assert (answer == 0) == (not words)
    assert words in capfd.readouterr().err
