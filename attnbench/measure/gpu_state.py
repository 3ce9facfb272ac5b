"""The GPU's state from NVML: clocks, power, temperature, throttling and this process's memory.

NVML comes with the driver, its Python binding with the extra `gpu` (nvidia-ml-py). Nothing here sets anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from attnbench.measure.clocks import Timed

SLOW_CLOCK = 0.75  # of the default SM clock: below it a block says little about the kernel
MOST_RETAKES = 3  # of a throttled block
BACK_OFF_S = 0.05  # before the first retake; doubled before each next
# Reasons that slow the clock whatever runs. A GPU under matrix products always runs at its power cap, and an idle one
# is about to wake: those are recorded, and count only if the clock itself is low.
HARMFUL = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown")
REASONS = ("GpuIdle", "ApplicationsClocksSetting", "SwPowerCap", "SyncBoost", "DisplayClockSetting", *HARMFUL)

T = TypeVar("T")


class GpuState:
    """One GPU through NVML; `nvml` is pynvml (or a stand-in, in tests). Figures it lacks are missing."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.default_sm_mhz = self._query(
            lambda: nvml.nvmlDeviceGetDefaultApplicationsClock(handle, nvml.NVML_CLOCK_SM)
        ) or self._query(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))

    @classmethod
    def of(cls, device: str) -> GpuState | None:
        """The state of a CUDA device of this process; None without NVML or its binding."""
        try:
            import pynvml
        except ImportError:
            return None
        import torch

        try:
            pynvml.nvmlInit()
            uuid = str(torch.cuda.get_device_properties(device).uuid)
            name = uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}"
            return cls(pynvml, pynvml.nvmlDeviceGetHandleByUUID(name))
        except (pynvml.NVMLError, AttributeError):
            return None

    def read(self) -> dict[str, Any]:
        """sm_mhz and its default_sm_mhz, memory_mhz, power_w, temperature_c and throttle reasons (names)."""
        nvml, handle = self._nvml, self._handle
        power_mw = self._query(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        figures = {
            "sm_mhz": self._query(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "memory_mhz": self._query(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "power_w": None if power_mw is None else round(power_mw / 1e3, 1),
            "temperature_c": self._query(
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            "reasons": self._reasons(),
            "default_sm_mhz": self.default_sm_mhz,
        }
        return {name: value for name, value in figures.items() if value is not None}

    def is_exclusive(self) -> bool:
        """Whether only one process may use this GPU at a time; workers of a second backend cannot start then."""
        mode = self._query(lambda: self._nvml.nvmlDeviceGetComputeMode(self._handle))
        return mode not in (None, self._nvml.NVML_COMPUTEMODE_DEFAULT)

    def process_bytes(self) -> int | None:
        """The GPU memory of this process, of all libraries; None if NVML does not report it (in containers)."""
        listed = self._query(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) or []
        own = (process.usedGpuMemory for process in listed if process.pid == os.getpid())
        return next(own, None)

    def _reasons(self) -> list[str] | None:
        nvml = self._nvml
        ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        ask = ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        bits = self._query(lambda: ask(self._handle))
        if bits is None:
            return None
        return [name for name in REASONS if bits & self._bit(name)]

    def _bit(self, name: str) -> int:
        for prefix in ("nvmlClocksEventReason", "nvmlClocksThrottleReason"):
            bit = getattr(self._nvml, prefix + name, None)
            if bit is not None:
                return int(bit)
        return 0

    def _query(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except self._nvml.NVMLError:  # not supported on this GPU, or not permitted
            return None


def throttled(state: dict[str, Any]) -> str:
    """Why a block measured in this state says little about the kernel; empty if the GPU was not throttled."""
    harmful = [name for name in state.get("reasons", ()) if name in HARMFUL]
    if harmful:
        return ", ".join(harmful)
    clock, default = state.get("sm_mhz"), state.get("default_sm_mhz")
    if clock and default and clock < SLOW_CLOCK * default:
        return f"SM clock {clock} MHz, {default} by default"
    return ""


def steady(
    take: Callable[[], Timed], state: GpuState | None, sleep: Callable[[float], None]
) -> tuple[Timed, dict[str, Any]]:
    """A block and the GPU's state at its end; a throttled block is retaken up to MOST_RETAKES times.

    `retaken` says how often, `throttled` why the last one still is.
    """
    if state is None:
        return take(), {}
    timed, figures = take(), state.read()
    again = 0
    while (reason := throttled(figures)) and again < MOST_RETAKES:
        sleep(BACK_OFF_S * 2**again)
        again += 1
        timed, figures = take(), state.read()
    figures |= {"retaken": again} if again else {}
    return timed, figures | ({"throttled": reason} if reason else {})
