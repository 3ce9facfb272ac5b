"""Measured memory agrees with the sizes of the tensors and with the resident set."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch

from attnbench.backend import Gradients, Output, Prepared, resolve
from attnbench.measure import measure_memory
from attnbench.measure.memory import RESIDENT_SLACK_BYTES, _cuda_memory
from attnbench.problem import Case, make_inputs

MIB = 1 << 20


def memory_of(name: str, case: Case) -> dict[str, int]:
    inputs = make_inputs(case)
    prepared = resolve(name).prepare(case, inputs)
    prepared.forward()
    return measure_memory(prepared, inputs.dout, "cpu")


def test_naive_holds_the_scores_and_little_more(a_case: Callable[..., Case]) -> None:
    case = a_case(q_heads=8, q_len=512, k_len=512, head_dim=64)
    scores, out = 8 * 512 * 512 * 4, 8 * 512 * 64 * 4
    peak = memory_of("naive", case)["fwd_peak"]
    # Scores and probabilities live together with nothing else of that size; a mask matrix is a quarter of one.
    assert 2 * scores <= peak <= 2 * scores + scores // 4 + 2 * out


def test_the_backward_of_naive_keeps_the_probabilities(a_case: Callable[..., Case]) -> None:
    case = a_case(q_heads=8, q_len=512, k_len=512, head_dim=64, direction="fwd_bwd")
    scores, out = 8 * 512 * 512 * 4, 8 * 512 * 64 * 4
    sizes = memory_of("naive", case)
    assert scores + out <= sizes["saved"] < sizes["fwd_peak"]
    # dP and dS beside what was saved.
    assert sizes["bwd_peak"] >= sizes["saved"] + 2 * scores


def test_flash_needs_no_matrix_of_scores(a_case: Callable[..., Case]) -> None:
    case = a_case(q_heads=8, q_len=1024, k_len=1024, head_dim=64, direction="fwd_bwd")
    sizes = memory_of("sdpa_flash", case)
    assert case.out_elements * 4 + case.rows * 4 <= sizes["fwd_peak"] < 8 * 1024 * 1024 * 4
    assert sizes["bwd_peak"] >= case.least_peak_bytes - case.rows * 4  # its delta is a temporary of its own


LARGE = """
import json
from attnbench.problem import Case
from tests.measure.test_memory import memory_of
print(json.dumps(memory_of("naive", Case(q_heads=4, q_len=2048, k_len=2048, head_dim=16, dtype="fp32"))))
"""


def test_the_resident_set_agrees_with_the_allocator_for_large_tensors() -> None:
    # 64 MiB of scores: beyond the largest size that glibc serves from its heap. The high-water mark is that of the
    # whole process, so a fresh one is used.
    ran = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True)
    sizes = json.loads(ran.stdout)
    if "fwd_resident" not in sizes:
        pytest.skip("this system gives no high-water mark of the resident set")
    assert sizes["fwd_peak"] >= 2 * 64 * MIB
    assert abs(sizes["fwd_resident"] - sizes["fwd_peak"]) < RESIDENT_SLACK_BYTES


class OutsideTorch(Prepared):
    """Takes 64 MiB outside torch's allocator."""

    def forward(self) -> Output:
        block = bytearray(64 * MIB)
        block[::4096] = b"x" * len(block[::4096])
        return Output(torch.zeros(1, 1, 1, 1))

    def backward(self, dout: torch.Tensor) -> Gradients:
        raise AssertionError("the test calls forward only")


def test_memory_taken_outside_torch_is_counted_by_the_resident_set() -> None:
    sizes = measure_memory(OutsideTorch(), None, "cpu")
    if "fwd_resident" not in sizes:
        pytest.skip("this system gives no high-water mark of the resident set")
    # The kernel counts resident pages in batches a CPU: a figure is good to a fraction of a MiB.
    assert sizes["fwd_peak"] >= 63 * MIB


class ScriptedCuda:
    """torch.cuda's figures of allocated bytes, moved by the calls under test."""

    def __init__(self) -> None:
        self.allocated = self.peak = 1000  # the inputs
        self.synchronised = True

    def takes(self, size: int, keeps: int) -> None:
        self.peak = max(self.peak, self.allocated + size)
        self.allocated += keeps
        self.synchronised = False

    def synchronize(self) -> None:
        self.synchronised = True

    def memory_allocated(self) -> int:
        assert self.synchronised
        return self.allocated

    def max_memory_allocated(self) -> int:
        assert self.synchronised
        return self.peak

    def memory_reserved(self) -> int:
        return 4096

    def max_memory_reserved(self) -> int:
        return 4096

    def reset_peak_memory_stats(self) -> None:
        self.peak = self.allocated


class ScriptedPrepared(Prepared):
    def __init__(self, cuda: ScriptedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def forward(self) -> Output:
        self.cuda.takes(300, keeps=120)
        return Output(torch.zeros(1, 1, 1, 1))

    def backward(self, dout: torch.Tensor) -> Gradients:
        self.cuda.takes(200, keeps=0)
        return Gradients(dout, dout, dout)


def test_on_cuda_peaks_count_from_what_the_inputs_hold() -> None:
    cuda = ScriptedCuda()
    sizes = _cuda_memory(ScriptedPrepared(cuda), torch.zeros(1), cuda)
    assert sizes == {"fwd_peak": 300, "saved": 120, "bwd_peak": 320, "reserved": 4096}


@pytest.mark.parametrize(("taken", "counted"), [(1 << 30, 1 << 30), (8 << 20, 0)])
def test_what_a_library_takes_outside_torch_joins_the_peak_beyond_the_drivers_own(
    taken: int, counted: int
) -> None:
    cuda = ScriptedCuda()
    held = iter([5 << 30, (5 << 30) + taken, (5 << 30) + taken])
    sizes = _cuda_memory(ScriptedPrepared(cuda), torch.zeros(1), cuda, lambda: next(held))
    assert sizes["fwd_outside"] == sizes["bwd_outside"] == taken
    assert (sizes["fwd_peak"], sizes["bwd_peak"]) == (300 + counted, 320 + counted)
    assert sizes["saved"] == 120
