"""The symptoms of this machine, examined one by one: what is installed, what is missing, what to do."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

GIB = 1 << 30
LEAST_TEMPORARY_BYTES, LEAST_MEMORY_BYTES = 2 * GIB, 2 * GIB
BUSY_SHARE = 0.5  # of the cores: other jobs at this load disturb timings


@dataclass(frozen=True)
class Symptom:
    """One finding of `doctor`: `state` is fine, note (nothing to do), warning (a cost) or bad (cannot work)."""

    name: str
    state: Literal["fine", "note", "warning", "bad"]
    found: str
    do: str = ""


def examine() -> Iterator[Symptom]:
    """Every symptom, the foundations first."""
    yield Symptom("python", "fine", f"{platform.python_version()} at {sys.executable}")
    yield from _torch()
    yield from _gpu()
    yield _compiler()
    yield _triton()
    yield _temporary()
    yield _memory()
    yield _threads()
    yield _load()
    yield _governor()
    yield _git()
    yield from _backends()


def _torch() -> Iterator[Symptom]:
    try:
        import torch
    except ImportError as error:
        yield Symptom("torch", "bad", f"cannot be imported: {error}", "pip install torch")
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a CPU build"
    yield Symptom("torch", "fine", f"{torch.__version__}, {built}")


def _gpu() -> Iterator[Symptom]:
    try:
        import torch
    except ImportError:
        return
    from attnbench.measure import GpuState

    driver = Path("/proc/driver/nvidia/version").exists() or shutil.which("nvidia-smi") is not None
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            name, memory = (
                torch.cuda.get_device_name(index),
                torch.cuda.get_device_properties(index).total_memory,
            )
            found = f"{name}, {memory / GIB:.0f} GiB"
            state = GpuState.of(f"cuda:{index}")
            if state is not None and state.is_exclusive():
                found += (
                    ", in exclusive compute mode: only one process may use it, and each backend has its own"
                )
                yield Symptom(f"cuda:{index}", "bad", found, f"nvidia-smi -i {index} -c DEFAULT (as root)")
            else:
                yield Symptom(f"cuda:{index}", "fine", found)
        return
    if not driver and not torch.version.cuda:
        yield Symptom("gpu", "note", "no NVIDIA driver and a CPU build of torch: everything runs on the CPU")
    elif not driver:
        do = "install the NVIDIA driver, or start the container with its GPUs (docker run --gpus all)"
        yield Symptom("gpu", "warning", "torch is built for CUDA, but there is no NVIDIA driver", do)
    elif not torch.version.cuda:
        do = "install a CUDA build of torch (pytorch.org/get-started names the index)"
        yield Symptom("gpu", "warning", "there is an NVIDIA driver, but torch is a CPU build", do)
    else:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        why = (
            f"CUDA_VISIBLE_DEVICES is {hidden!r}"
            if hidden is not None
            else "the driver may be older than CUDA's version"
        )
        yield Symptom(
            "gpu",
            "warning",
            f"the driver and a CUDA build are installed, but torch sees no device: {why}",
            "try nvidia-smi",
        )


def _compiler() -> Symptom:
    compiler = os.environ.get("CXX", "g++")
    path = shutil.which(compiler)
    if path:
        return Symptom("c++ compiler", "fine", path)
    do = "apt-get install g++ (or set CXX to a compiler)"
    return Symptom(
        "c++ compiler", "warning", f"no {compiler}: FlexAttention cannot be compiled on the CPU", do
    )


def _triton() -> Symptom:
    from attnbench.backend.conflicts import interpreter_conflict

    try:
        conflict = interpreter_conflict(version("triton"), version("numpy"))
        if conflict:
            found, do = conflict.split(": ", 1)
            return Symptom("triton", "warning", f"{found}; on a GPU it works", do)
        return Symptom("triton", "fine", version("triton"))
    except PackageNotFoundError:
        return Symptom(
            "triton",
            "note",
            "not installed: the triton backend is unavailable",
            "pip install 'attnbench[triton]'",
        )


def _temporary() -> Symptom:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free >= LEAST_TEMPORARY_BYTES:
        return Symptom("temporary files", "fine", f"{folder}, {free / GIB:.1f} GiB free")
    do = "set TMPDIR to a folder with more space, for compiled kernels and references"
    return Symptom("temporary files", "warning", f"{folder} has {free / GIB:.2f} GiB free", do)


def _memory() -> Symptom:
    from attnbench.sweep.limits import available_memory_bytes, default_memory_limit_bytes

    available, limit = available_memory_bytes(), default_memory_limit_bytes()
    text = f"{available / GIB:.1f} GiB available; a worker may take {limit / GIB:.1f} GiB"
    if available >= LEAST_MEMORY_BYTES:
        return Symptom("memory", "fine", text)
    return Symptom("memory", "warning", text, "end other programs, or skip long cases: they would be oom")


def _threads() -> Symptom:
    from attnbench.measure.threads import allowed_cpus, physical_cpus

    cores, logical = len(physical_cpus()), len(allowed_cpus())
    set_to = os.environ.get("OMP_NUM_THREADS")
    text = f"{cores} cores may be used ({logical} of {os.cpu_count()} logical CPUs)"
    if set_to is not None and set_to != str(cores):
        text += f", OMP_NUM_THREADS is {set_to}"
        return Symptom("threads", "note", text, "unset OMP_NUM_THREADS to measure with all cores")
    return Symptom("threads", "fine", text)


def _load() -> Symptom:
    import psutil

    busy, cores = psutil.getloadavg()[0], psutil.cpu_count() or 1
    text = f"{busy:.1f} jobs running on {cores} CPUs in the last minute"
    if busy <= BUSY_SHARE * cores:
        return Symptom("load", "fine", text)
    return Symptom("load", "warning", f"{text}: timings will spread", "end other jobs before you measure")


def _governor() -> Symptom:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    try:
        governor = path.read_text().strip()
    except OSError:
        return Symptom("cpu clock", "note", "its governor cannot be read (usual in containers)")
    if governor == "performance":
        return Symptom("cpu clock", "fine", f"governor {governor}")
    do = "if short timings spread: cpupower frequency-set -g performance"
    return Symptom("cpu clock", "note", f"governor {governor}: clocks follow the load", do)


def _git() -> Symptom:
    if shutil.which("git"):
        return Symptom("git", "fine", str(shutil.which("git")))
    return Symptom("git", "note", "no git: results do not name their commit", "apt-get install git")


def _backends() -> Iterator[Symptom]:
    from attnbench.report.backends import missing_groups
    from attnbench.session import backends

    rows = backends().to_dict("records")
    usable = [str(row["name"]) for row in rows if row["available"]]
    if usable:
        yield Symptom("backends", "fine", f"{len(usable)} available: {', '.join(usable)}")
    else:
        yield Symptom("backends", "bad", "none is available", "see the reasons below")
    for names, reason, install in missing_groups(rows):
        yield Symptom("not available", "note", f"{', '.join(names)}: {reason}", install)
