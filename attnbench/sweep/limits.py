"""The limits of a worker: its memory, no core files, death with its parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import threading
from pathlib import Path

import psutil

from attnbench.device import cuda_index

DEFAULT_SHARE = 0.6  # of the available memory
_PR_SET_PDEATHSIG = 1
_CGROUP = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)


def available_memory_bytes() -> int:
    """The memory this process may still take: the machine's free memory, or the container's if that is less."""
    available = int(psutil.virtual_memory().available)
    for limit, used in _CGROUP:
        with contextlib.suppress(OSError, ValueError):
            available = min(available, max(0, int(Path(limit).read_text()) - int(Path(used).read_text())))
    return available


def default_memory_limit_bytes() -> int:
    """60 % of the available memory."""
    return int(DEFAULT_SHARE * available_memory_bytes())


def limit_memory(limit_bytes: int | None, device: str) -> None:
    """Limit this process to `limit_bytes` more than it holds now (on CUDA: to this much of the GPU's memory).

    Called once the libraries are loaded: their address space is not the case's. A system without limits on
    address space sets none.
    """
    if device.split(":")[0] == "cuda":
        import torch

        index = cuda_index(device)
        free, total = torch.cuda.mem_get_info(index)
        limit = limit_bytes or int(DEFAULT_SHARE * free)
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / total), index)
        return
    held = None
    with contextlib.suppress(OSError):
        held = re.search(r"^VmSize:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.MULTILINE)
    if limit_bytes is None or held is None:
        return
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    soft = int(held.group(1)) * 1024 + limit_bytes
    soft = soft if hard == resource.RLIM_INFINITY else min(soft, hard)
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def become_worker(parent: int, alive_fd: int) -> None:
    """End with the parent even while in C code, leave no core file, be the first process the system kills."""
    if hasattr(signal, "SIGKILL") and os.uname().sysname == "Linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_end_with_parent, args=(alive_fd,), name="end-with-parent", daemon=True).start()
    if os.getppid() != parent:  # the parent died before prctl took effect
        os._exit(1)
    with contextlib.suppress(ImportError, ValueError, OSError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def _end_with_parent(alive_fd: int) -> None:
    # Nothing is ever written: the read returns when the parent, which holds the other end, ends.
    with contextlib.suppress(OSError):
        os.read(alive_fd, 1)
    # The worker leads its own session, so this ends the processes it started, too.
    os.killpg(os.getpgid(0), signal.SIGKILL)
