"""Workers of a plain run are forked from one server, none starts for nothing, and none loads beside what is timed."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import weakref
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from attnbench.sweep import CaseStarted, Finished, Notice, Result, run_sweep
from attnbench.sweep.starting import CAN_FORK, worker_environment

Plans = Callable[..., list[Any]]
PlugIns = Callable[[str], str]
QUICK: dict[str, Any] = {"device": "cpu", "rounds": 2, "block_ms": 1.0}
needs_fork = pytest.mark.skipif(not CAN_FORK, reason="workers start anew on this system")


def processes() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


def role(process: psutil.Process) -> str:
    """`fork_server` or `worker` for a process that was started as one, `forked` for a worker forked by a server."""
    module = next((word for word in process.cmdline() if word.startswith("attnbench.sweep.")), "")
    is_forked = process.parent() is not None and process.parent().cmdline() == process.cmdline()
    return "forked" if is_forked else module.rpartition(".")[2]


def roles_during(plans: list[Any], backends: list[Any], **options: Any) -> tuple[Counter[str], list[Result]]:
    """How many processes of each role lived at the end of the sweep's last row."""
    seen: Counter[str] = Counter()
    before = {process.pid for process in processes()}

    def tell(event: Any) -> None:
        if isinstance(event, Finished):
            seen.clear()
            seen.update(role(process) for process in processes() if process.pid not in before)

    results = run_sweep(plans, backends, on_event=tell, **(QUICK | options))
    return seen, results


@needs_fork
def test_workers_of_a_plain_run_are_forked_from_one_server(plans: Plans, bad_plug_ins: PlugIns) -> None:
    backends = [bad_plug_ins("right"), bad_plug_ins("prints")]
    seen, results = roles_during(plans(24), backends)
    assert seen == {"fork_server": 1, "forked": 3}  # one of them computes references
    assert [result.status for result in results] == ["ok", "ok"]


@needs_fork
def test_what_measures_differences_between_processes_starts_them_anew(
    plans: Plans, bad_plug_ins: PlugIns
) -> None:
    seen, results = roles_during(plans(24), [bad_plug_ins("right")], processes=2)
    assert seen == {"worker": 2}
    assert {one.get("process", 0) for one in results[0].rounds} == {0, 1}


@needs_fork
def test_no_worker_starts_for_what_is_missing_or_declares_that_it_takes_no_case(plans: Plans) -> None:
    # A step for a backend that was never loaded would start its worker.
    seen, results = roles_during(plans(24), ["sdpa_cudnn", "flash_attn_3", "torch_varlen", "sdpa_efficient"])
    assert seen == {"fork_server": 1, "forked": 1}  # the references' worker, which also describes the machine
    status = {result.backend: (result.status, result.reason) for result in results}
    assert status["sdpa_cudnn"] == ("refused", "runs on cuda, not on cpu")
    assert status["torch_varlen"] == ("refused", "runs on cuda, not on cpu")
    assert status["sdpa_efficient"] == ("refused", "runs on cuda, not on cpu")
    assert status["flash_attn_3"][0] == "unavailable"


@needs_fork
def test_a_server_with_more_than_one_thread_forks_nothing_and_says_so(
    plans: Plans, bad_plug_ins: PlugIns, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    (tmp_path / "sitecustomize.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    notices: list[str] = []

    def tell(event: Any) -> None:
        if isinstance(event, Notice):
            notices.append(event.text)

    (result,) = run_sweep(plans(24), [bad_plug_ins("right")], on_event=tell, **QUICK)
    assert result.status == "ok"
    assert any("2 threads run after importing torch" in text for text in notices)


@needs_fork
def test_a_server_is_one_thread_without_cuda_and_without_triton() -> None:
    program = (
        "import sys\nfrom attnbench.sweep import fork_server\nfork_server.load()\n"
        "print(fork_server.unfit() == '', 'triton' in sys.modules, 'attnbench_backends' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env=worker_environment("cpu"),
    )
    assert done.stdout.split() == ["True", "False", "False"]


def test_torch_compile_starts_no_processes_beside_what_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_COMPILE_THREADS", raising=False)
    assert worker_environment("cpu")["TORCHINDUCTOR_COMPILE_THREADS"] == "1"
    assert "TORCHINDUCTOR_COMPILE_THREADS" not in worker_environment("cuda:0")
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "3")
    assert worker_environment("cpu")["TORCHINDUCTOR_COMPILE_THREADS"] == "3"


STARTS = """
import os, sys, time
if "attnbench.sweep.worker" in sys.orig_argv:
    with open(os.environ["LOG"], "a") as file:
        file.write(f"{time.monotonic()} start {os.getpid()}\\n")
    time.sleep(0.7)
"""
CALLS = """
import os, time
import torch

def log(what):
    with open(os.environ["LOG"], "a") as file:
        file.write(f"{time.monotonic()} {what} {os.getpid()}\\n")

log("loaded")

def right(q, k, v, **options):
    log("call")
    return torch.nn.functional.scaled_dot_product_attention(q, k, v)

def also_right(q, k, v, **options):
    return right(q, k, v)
"""


def test_no_worker_loads_while_another_one_computes(
    plans: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "sitecustomize.py").write_text(STARTS)
    (tmp_path / "mine.py").write_text(CALLS)
    monkeypatch.setenv("LOG", str(tmp_path / "log"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    backends = [f"{tmp_path / 'mine.py'}:{name}" for name in ("right", "also_right")]
    results = run_sweep(plans(24), backends, processes=2, **QUICK)
    assert [result.status for result in results] == ["ok"] * 2
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    loaded = {pid for _, what, pid in lines if what == "loaded"}  # not the worker that computes references
    assert len(loaded) == 4
    loading, beside = set(), []
    for _, what, pid in sorted(lines, key=lambda line: float(line[0])):
        if what == "start" and pid in loaded:
            loading.add(pid)
        elif what == "loaded":
            loading.remove(pid)
        elif what == "call" and loading:
            beside.append(pid)
    assert beside == []


COMPILES = """
import os, pathlib, torch
from attnbench.backend import AutogradPrepared, Backend, Capabilities

class Compiled(Backend):
    capabilities = Capabilities(compiles=True)

    def prepare(self, case, inputs):
        with open(os.environ["PREPARED"], "a") as file:
            file.write(f"{case.q_len} ")
        def compute(q, k, v, scores):
            return torch.nn.functional.scaled_dot_product_attention(q, k, v)
        return AutogradPrepared(case, inputs, compute)

compiled = Compiled()
"""


def test_what_compiles_prepares_every_case_before_any_is_judged(
    plans: Plans, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.py").write_text(COMPILES)
    monkeypatch.setenv("PREPARED", str(tmp_path / "prepared"))
    prepared_at_first_case: list[str] = []

    def tell(event: Any) -> None:
        if isinstance(event, CaseStarted) and not prepared_at_first_case:
            prepared_at_first_case.extend((tmp_path / "prepared").read_text().split())

    results = run_sweep(plans(16, 24, 32), [f"{tmp_path / 'mine.py'}:compiled"], on_event=tell, **QUICK)
    assert [result.status for result in results] == ["ok"] * 3
    assert prepared_at_first_case == ["16", "24", "32"]
    assert (tmp_path / "prepared").read_text().split() == ["16", "24", "32"] * 2


def test_one_case_is_held_in_memory_at_a_time(plans: Plans) -> None:
    held: dict[int, weakref.ref[Tensor]] = {}
    alive: list[list[int]] = []

    def right(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Tensor:
        held[q.shape[2]] = weakref.ref(q)
        return torch.nn.functional.scaled_dot_product_attention(q, k, v)

    def tell(event: Any) -> None:
        if isinstance(event, CaseStarted):
            gc.collect()
            alive.append([length for length, q in held.items() if q() is not None])

    run_sweep(plans(16, 24, 32), [right], on_event=tell, **QUICK)
    assert sorted(held) == [16, 24, 32]
    assert alive == [[], [], []]


def test_the_end_of_the_runner_ends_forked_workers(tmp_path: Path, bad_plug_ins: PlugIns) -> None:
    program = f"""
import os, signal
from attnbench.problem import Case
from attnbench.sweep import Finished, run_sweep
from attnbench.sweep.suite import Planned
import psutil
def tell(event):
    if isinstance(event, Finished):
        print(*(p.pid for p in psutil.Process().children(recursive=True)), flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
case = Case(q_len=24, k_len=24, q_heads=1, head_dim=8, dtype="fp32")
run_sweep([Planned(case)], [{bad_plug_ins("right")!r}], device="cpu", rounds=1, block_ms=1.0, on_event=tell)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=120
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) >= 2, done.stderr
    _, left = psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=20)
    assert left == []


def test_the_caller_has_no_child_left(plans: Plans, bad_plug_ins: PlugIns) -> None:
    before = {process.pid for process in processes()}
    descriptors = len(os.listdir("/proc/self/fd")) if CAN_FORK else 0
    run_sweep(plans(24), [bad_plug_ins("right")], **QUICK)
    gc.collect()
    assert {process.pid for process in processes()} <= before
    assert not CAN_FORK or len(os.listdir("/proc/self/fd")) <= descriptors
