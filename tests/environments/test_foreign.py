"""The foreign process in another Python environment: its bytes, faults and times, its end and ours."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from attnbench.backend.foreign import Foreign, ForeignPrepared
from attnbench.errors import AttnbenchError, BackendUnavailable, ForeignDied
from attnbench.measure.clocks import FakeClock
from attnbench.measure.timing import Pace, time_block
from attnbench.problem import make_inputs
from attnbench.sweep.step_errors import step_error_of

PROGRAM = """
import os, sys, time
import numpy as np

def start(device):
    assert "torch" not in sys.modules and "attnbench" not in sys.modules
    return {"device": device}

def prepare(task, arrays, device):
    what = task.get("fail", "")
    if what == "refuse":
        raise NotImplementedError("no such mask")
    if what == "memory":
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 123 bytes")
    if what == "raise":
        raise ValueError("a plain mistake")
    if what == "import":
        raise ImportError("no GPU here")
    if what == "die":
        print("last words", flush=True)
        os.abort()
    return Job(task, arrays)

class Job:
    kernel = "doubles v"
    prepare_ms = {"compile": 1.0}
    def __init__(self, task, arrays):
        self.calls = 0
        self.refill(arrays)
    def refill(self, arrays):
        self.arrays = arrays
    def forward(self):
        self.calls += 1
        while os.environ.get("ATTNBENCH_TEST_HANG"):
            time.sleep(0.1)
        dtype, v = self.arrays["v"]
        self.out = dtype, (v * 2 if dtype != "bf16" else v)
    def backward(self):
        self.calls += 1
    def outputs(self):
        return {"out": self.out}
    def gradients(self):
        return {"dq": self.arrays["q"], "dk": self.arrays["k"], "dv": self.arrays["dout"]}
    def memory(self):
        return {"fwd_peak": self.calls}
    def drop(self):
        self.out = None
"""


@pytest.fixture
def foreign(tmp_path: Path) -> Iterator[Foreign]:
    (tmp_path / "program.py").write_text(PROGRAM)
    made = Foreign(Path(sys.executable), tmp_path / "program.py", "cpu")
    yield made
    made.stop()


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while alive(pid) and time.monotonic() < end:
        time.sleep(0.05)
    return not alive(pid)


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("layout", ["bhsd", "bshd"])
def test_the_bits_that_come_back_are_the_bits_that_went(
    foreign: Foreign, a_case: Any, dtype: str, layout: str
) -> None:
    case = a_case(dtype=dtype, layout=layout, batch=2, direction="fwd_bwd")
    inputs = make_inputs(case)
    prepared = ForeignPrepared(foreign, case, inputs, {}, {})
    out = prepared.forward().out
    assert torch.equal(out, inputs.v if dtype == "bf16" else inputs.v * 2)
    assert inputs.dout is not None
    gradients = prepared.backward(inputs.dout)
    assert torch.equal(gradients.dq, inputs.q)
    assert torch.equal(gradients.dv, inputs.dout)
    assert torch.equal(prepared.backward(inputs.dout * 8).dv, inputs.dout * 8)
    assert torch.equal(prepared.backward(inputs.dout).dv, inputs.dout)
    assert prepared.kernel == "doubles v"
    assert prepared.prepare_ms["compile"] == 1.0


def test_new_numbers_in_the_same_storage_are_sent_again(foreign: Foreign, a_case: Any) -> None:
    inputs = make_inputs(a_case())
    prepared = ForeignPrepared(foreign, inputs.case, inputs, {}, {})
    prepared.forward()
    inputs.v.add_(1.0)
    assert torch.equal(prepared.forward().out, inputs.v * 2)


def test_a_flipped_bit_on_the_way_is_seen(foreign: Foreign) -> None:
    fields = foreign.send({"v": ("fp32", np.ones((1, 2, 1, 2), np.float32))})
    fields["arrays"]["v"]["checksum"] = "0" * 32
    with pytest.raises(AttnbenchError, match="bytes of v arrived changed"):
        foreign.call("prepare", job=0, task={}, **fields)


def test_a_flipped_bit_on_the_way_back_is_seen(foreign: Foreign, a_case: Any) -> None:
    inputs = make_inputs(a_case())
    prepared = ForeignPrepared(foreign, inputs.case, inputs, {}, {})
    prepared.forward()
    answer = foreign.call("forward", job=0)
    answer["arrays"]["out"]["checksum"] = "0" * 32
    with pytest.raises(AttnbenchError, match="bytes of out came back changed"):
        foreign.receive(answer["arrays"])


@pytest.mark.parametrize(
    ("fail", "kind", "status"),
    [
        ("refuse", NotImplementedError, "refused"),
        ("memory", MemoryError, "oom"),
        ("raise", AttnbenchError, "error"),
        ("import", BackendUnavailable, "unavailable"),
        ("die", ForeignDied, "crashed"),
    ],
)
def test_what_fails_in_the_foreign_process_has_its_status_here(
    foreign: Foreign, a_case: Any, fail: str, kind: type[Exception], status: str
) -> None:
    inputs = make_inputs(a_case())
    with pytest.raises(kind) as caught:
        ForeignPrepared(foreign, inputs.case, inputs, {"fail": fail}, {})
    assert step_error_of(caught.value).status == status
    if fail == "die":
        assert "last words" in str(caught.value)
    # The next case is answered: by the same process, or by a new one.
    assert torch.equal(ForeignPrepared(foreign, inputs.case, inputs, {}, {}).forward().out, inputs.v * 2)


def test_an_interpreter_that_is_not_there_makes_the_backend_unavailable(tmp_path: Path) -> None:
    with pytest.raises(BackendUnavailable, match="cannot be started"):
        Foreign(tmp_path / "no-python", tmp_path / "program.py", "cpu").start()


def test_blocks_are_timed_in_the_foreign_process_and_their_last_answer_is_judged_here(
    foreign: Foreign, a_case: Any
) -> None:
    inputs = make_inputs(a_case())
    prepared = ForeignPrepared(foreign, inputs.case, inputs, {}, {})
    before = prepared.memory()["fwd_peak"]
    # A clock of this process that stands still cannot have timed anything.
    timed = time_block(FakeClock(), prepared.call("fwd", None), Pace(1.0, 5, 1, True), block_ms=15.0)
    assert len(timed.samples_ms) == 3
    assert all(ms > 0 for ms in timed.samples_ms)
    assert prepared.memory()["fwd_peak"] - before == 3 * 5 + 1
    assert torch.equal(timed.last.out, inputs.v * 2)


def test_the_process_ends_with_its_owner(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    made = Foreign(Path(sys.executable), tmp_path / "program.py", "cpu")
    made.start()
    pid = made._popen.pid
    assert alive(pid)
    del made
    gc.collect()
    assert gone(pid)


def test_the_process_ends_when_its_parent_is_killed_and_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    program = f"""
import os, signal, sys
from pathlib import Path
from attnbench.backend.foreign import Foreign
made = Foreign(Path(sys.executable), Path({str(tmp_path / "program.py")!r}), "cpu")
made.start()
print(made._popen.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    left = set(os.listdir("/dev/shm")) if Path("/dev/shm").is_dir() else set()
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert gone(int(done.stdout))
    if Path("/dev/shm").is_dir():
        assert not [name for name in set(os.listdir("/dev/shm")) - left if name.startswith("attnbench")]


def test_the_process_ends_when_its_parent_is_killed_while_it_computes(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    program = f"""
import os, sys
from pathlib import Path
from attnbench.backend.foreign import Foreign, ForeignPrepared
from attnbench.problem import Case, make_inputs
os.environ["ATTNBENCH_TEST_HANG"] = "1"
made = Foreign(Path(sys.executable), Path({str(tmp_path / "program.py")!r}), "cpu")
made.start()
inputs = make_inputs(Case(q_len=4, k_len=4, q_heads=1, head_dim=4, dtype="fp32"))
prepared = ForeignPrepared(made, inputs.case, inputs, {{}}, {{}})
print(made._popen.pid, flush=True)
prepared.forward()
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert gone(pid)


def test_a_memory_limit_of_the_parent_does_not_bind_the_process_and_its_own_does(foreign: Foreign) -> None:
    resource = pytest.importorskip("resource")
    foreign.start()
    foreign.call("limit", limit_bytes=64 << 20)
    soft, _ = resource.prlimit(foreign._popen.pid, resource.RLIMIT_AS)
    assert soft != resource.RLIM_INFINITY
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
