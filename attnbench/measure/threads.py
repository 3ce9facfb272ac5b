"""The CPUs of a measurement: one thread per physical core that this process may run on."""

from __future__ import annotations

import os
from pathlib import Path

_CPUS = Path("/sys/devices/system/cpu")


def allowed_cpus() -> list[int]:
    """The logical CPUs this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def physical_cpus() -> list[int]:
    """One allowed logical CPU per physical core: two threads on one core share its arithmetic units."""
    chosen, seen = [], set()
    for cpu in allowed_cpus():
        try:
            siblings = (_CPUS / f"cpu{cpu}/topology/thread_siblings_list").read_text().strip()
        except OSError:
            siblings = str(cpu)
        if siblings not in seen:
            seen.add(siblings)
            chosen.append(cpu)
    return chosen


def pin_threads() -> int:
    """Pin this process to one CPU per core, and set as many torch threads or OMP_NUM_THREADS; returns the number.

    Call it before torch starts its threads: they inherit the affinity.
    """
    import torch

    cpus = physical_cpus()
    limit = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(len(cpus), int(limit)) if limit.isdigit() and int(limit) > 0 else len(cpus)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)
    return threads
