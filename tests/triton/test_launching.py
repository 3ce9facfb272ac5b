"""A call passes Triton's own launch path without a GPU: named tuples, descriptors, predicates."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

# Every kernel once. 500 tokens in blocks of 128 by two heads (dK and dV: one key head), and shared by 4 programs; delta
# at head dim 64 in blocks of 256, the bias's gradient of 64; eight parts of a long cache by one key head.
WANTED = {
    "bf16-d128-causal-alibi": {"forward_kernel": 8, "delta_kernel": 8, "dk_dv_kernel": 4, "dq_kernel": 8},
    "bf16-d128-causal-persistent": {
        "forward_kernel": 4,
        "delta_kernel": 8,
        "dk_dv_kernel": 4,
        "dq_kernel": 4,
    },
    "bf16-d64-full-bias": {
        "forward_kernel": 8,
        "delta_kernel": 4,
        "dk_dv_kernel": 4,
        "dq_kernel": 8,
        "bias_gradient_kernel": 16,
    },
    "bf16-d128-decode": {"decode_kernel": 8, "combine_kernel": 2},
}


@pytest.mark.parametrize("specimen", WANTED)
def test_the_kernels_of_a_call_are_bound_compiled_and_launched(specimen: str) -> None:
    program = Path(__file__).with_name("launching.py")
    done = subprocess.run(
        [sys.executable, str(program), specimen], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert dict(json.loads(done.stdout)["launched"]) == WANTED[specimen]
