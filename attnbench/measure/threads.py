"""Which CPUs does a measurement use? One thread for each physical core this process may run on."""

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
    """One allowed logical CPU of each physical core: two threads on one core share its arithmetic units."""
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
    """Keep this process on one CPU a core, with that many torch threads or OMP_NUM_THREADS; how many it is.

    To be called before torch starts its threads: they inherit the affinity.
    """
    import torch

    cpus = physical_cpus()
    asked = os.environ.get("OMP_NUM_THREADS", "")
    threads = min(len(cpus), int(asked)) if asked.isdigit() and int(asked) > 0 else len(cpus)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)
    torch.set_num_threads(threads)
    return threads
