"""The kernel for the rate of exponentials computes nothing else, as compiled for several GPUs."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

pytest.importorskip("triton")

COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from attnbench.measure.exp_kernel import BLOCK, UNROLLED, exp_kernel
signature = {"out": "*fp32", "steps": "i32", "UNROLLED": "constexpr", "BLOCK": "constexpr"}
source = ASTSource(exp_kernel, signature, {(2,): UNROLLED, (3,): BLOCK}, {})
made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32), options={"num_warps": 4, "num_stages": 1})
print(made.asm["ptx"])
"""
INTERPRET = """
import torch
from attnbench.measure import FakeClock
from attnbench.measure.exp_kernel import BLOCK, exp_kernel, exps_per_second
clock = FakeClock()
whole = clock.time
def time(call, samples, calls_per_sample=1, host_ms=0.0):
    return whole(lambda: (call(), clock.advance(2.0)), samples)
clock.time = time
print(exps_per_second(clock, "cpu", programs=2, steps=3), 2 * BLOCK * 3 * 16 / 2e-3)
out = torch.empty(BLOCK)
exp_kernel[(1,)](out, 3, UNROLLED=16, BLOCK=BLOCK)
fixed = torch.tensor(0.6411857445)  # x = 2^-x
print(float((out - fixed).abs().max()))
"""


def ran(program: str, *words: str, **environment: str) -> str:
    # Whether Triton compiles or interprets is decided once a process.
    import os

    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", program, *words]
    return subprocess.run(
        command, env=kept | environment, capture_output=True, text=True, check=True, timeout=120
    ).stdout


@pytest.mark.parametrize("architecture", ["80", "90", "100"])
def test_its_loop_is_exponentials_only(architecture: str) -> None:
    ptx = ran(COMPILE, architecture)
    loops = re.split(r"^\$L__BB", ptx, flags=re.MULTILINE)
    loop = max(loops, key=lambda part: part.count("ex2.approx"))
    exponentials = loop.count("ex2.approx")
    assert exponentials == 16 * 1024 // 128  # of one thread: unrolled, of eight values
    arithmetic = re.findall(r"^\s+(\w+)\.(?:ftz\.)?f32", loop, re.MULTILINE)
    # A sign is part of the instruction that reads it.
    assert set(arithmetic) <= {"ex2", "neg", "sub", "mov", "mul"}, set(arithmetic)
    assert len(arithmetic) <= 3 * exponentials


def test_its_rate_is_what_it_computed_over_the_time_and_its_values_stay_finite() -> None:
    rates, error = ran(INTERPRET, TRITON_INTERPRET="1").split("\n")[:2]
    rate, wanted = map(float, rates.split())
    assert rate == pytest.approx(wanted)
    assert float(error) < 1e-3
