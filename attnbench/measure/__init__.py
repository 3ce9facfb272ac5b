"""Time, memory and machine: clocks, peaks, roofs, fingerprint; nothing about correctness."""

from attnbench.measure.clocks import Clock, CpuClock, CudaClock, FakeClock, Timed, WarmCudaClock, clock_for
from attnbench.measure.fingerprint import commit_label, fingerprint, fingerprint_key, git_state
from attnbench.measure.gpu_state import GpuState, steady
from attnbench.measure.memory import allocated_by, measure_memory
from attnbench.measure.other_clocks import other_clocks
from attnbench.measure.roofs import measure_roofs
from attnbench.measure.threads import physical_cpus, pin_threads
from attnbench.measure.timing import BLOCK_MS, Pace, find_pace, time_block

__all__ = [
    "BLOCK_MS",
    "Clock",
    "CpuClock",
    "CudaClock",
    "FakeClock",
    "GpuState",
    "Pace",
    "Timed",
    "WarmCudaClock",
    "allocated_by",
    "clock_for",
    "commit_label",
    "find_pace",
    "fingerprint",
    "fingerprint_key",
    "git_state",
    "measure_memory",
    "measure_roofs",
    "other_clocks",
    "physical_cpus",
    "pin_threads",
    "steady",
    "time_block",
]
