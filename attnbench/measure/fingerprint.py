"""The fingerprint of an environment: machine, libraries, clocks and code, which make results comparable or not."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from attnbench.measure.threads import allowed_cpus, physical_cpus

LIBRARIES = (
    "attnbench",
    "torch",
    "numpy",
    "triton",
    "xformers",
    "flash-attn",
    "flash-attn-4",
    "flashinfer-python",
    "jax",
    "flax",
    "transformer-engine",
)
IDENTIFYING = ("cpu", "gpu", "memory_gib", "os", "python", "libraries", "threads", "clock_policy", "device")


def fingerprint(device: str = "cpu", folder: str | Path = ".") -> dict[str, Any]:
    """The environment as JSON values; `folder` holds the code under test and gives the git commit."""
    import torch

    kind = device.split(":")[0]
    cpu = _cpu()
    gpu = _gpu(device) if kind == "cuda" else None
    return {
        "machine": gpu["name"] if gpu else f"{cpu['model']}, {cpu['cores_used']} cores",
        "device": kind,
        "cpu": cpu,
        "gpu": gpu,
        "memory_gib": round(psutil.virtual_memory().total / (1 << 30)),
        "os": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "libraries": _versions() | {"cuda": torch.version.cuda, "cudnn": _cudnn()},
        "threads": torch.get_num_threads(),
        "clock_policy": _clock_policy(gpu),
        "git": git_state(folder),
    }


def fingerprint_key(environment: dict[str, Any]) -> str:
    """Twelve hex digits of what identifies machine and libraries; the git state is not part of it."""
    identifying = {name: environment.get(name) for name in IDENTIFYING}
    text = json.dumps(identifying, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def git_state(folder: str | Path = ".") -> dict[str, Any]:
    """`commit` (outside a repository ATTNBENCH_COMMIT, or empty) and `dirty`: whether tracked files differ from it."""
    commit = _git(folder, "rev-parse", "HEAD") or os.environ.get("ATTNBENCH_COMMIT")
    dirty = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return {"commit": commit or "", "dirty": bool(dirty)}


def commit_label(state: dict[str, Any]) -> str:
    """`1a2b3c4d5e6f`, with `+dirty` if the working folder differs from the commit."""
    return f"{state['commit'][:12]}{'+dirty' if state['dirty'] else ''}" if state["commit"] else ""


def _git(folder: str | Path, *arguments: str) -> str | None:
    # Contract 10 keeps processes in sweep and cli; git is the one exception, and only reads.
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return ran.stdout.strip() if ran.returncode == 0 else None


def _versions() -> dict[str, str]:
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _cudnn() -> int | None:
    import torch

    return torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None


def _cpu() -> dict[str, Any]:
    return {
        "model": _cpu_model(),
        "cores_used": len(physical_cpus()),
        "logical_allowed": len(allowed_cpus()),
        "logical": os.cpu_count(),
    }


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("model name", "hardware")):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _gpu(device: str) -> dict[str, Any]:
    import torch

    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "count": torch.cuda.device_count(),
        "capability": f"{properties.major}.{properties.minor}",
        "memory_gib": round(properties.total_memory / (1 << 30)),
        "l2_bytes": properties.L2_cache_size,
        "sms": properties.multi_processor_count,
        "driver": _driver(),
    }


def _driver() -> str:
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return "unknown"
    numbers = [word for word in first.split() if word[:1].isdigit() and "." in word]
    return numbers[0] if numbers else "unknown"


def _clock_policy(gpu: dict[str, Any] | None) -> dict[str, Any]:
    """What governs the clocks; attnbench never sets them."""
    policy: dict[str, Any] = {
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "boost": _read("/sys/devices/system/cpu/cpufreq/boost"),
        "set_by_attnbench": False,
    }
    if gpu is not None:
        policy["gpu"] = "default"
    return policy


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return "unknown"
