"""What state is the GPU in? Clocks, power, temperature, throttling and this process's memory, as NVML tells them.

NVML comes with the driver, its Python binding with the extra `gpu` (nvidia-ml-py). Nothing here ever sets anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

from attnbench.measure.clocks import Timed

SLOW = 0.75  # of the default SM clock: below, a block says little of the kernel
RETAKEN = 3  # times a throttled block is taken again, at most
BACK_OFF_S = 0.05  # before the first of them; twice as long before each next
# Reasons for which the clock is low whatever runs. A power cap is how a GPU under matrix products always runs, and an
# idle one is only about to wake: those are recorded, and count where the clock itself is low.
HARMFUL = ("HwSlowdown", "HwThermalSlowdown", "HwPowerBrakeSlowdown", "SwThermalSlowdown")
REASONS = ("GpuIdle", "ApplicationsClocksSetting", "SwPowerCap", "SyncBoost", "DisplayClockSetting", *HARMFUL)

T = TypeVar("T")


class GpuState:
    """One GPU through NVML; `nvml` is pynvml (or what looks like it, in tests). Figures it cannot give are missing."""

    def __init__(self, nvml: Any, handle: Any) -> None:
        self._nvml, self._handle = nvml, handle
        self.default_sm_mhz = self._asked(
            lambda: nvml.nvmlDeviceGetDefaultApplicationsClock(handle, nvml.NVML_CLOCK_SM)
        ) or self._asked(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM))

    @classmethod
    def of(cls, device: str) -> GpuState | None:
        """The state of a CUDA device of this process; None where NVML or its binding is not there."""
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
        """sm_mhz, memory_mhz, power_w, temperature_c, reasons (names), and default_sm_mhz to hold sm_mhz against."""
        nvml, handle = self._nvml, self._handle
        power_mw = self._asked(lambda: nvml.nvmlDeviceGetPowerUsage(handle))
        found = {
            "sm_mhz": self._asked(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)),
            "memory_mhz": self._asked(lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)),
            "power_w": None if power_mw is None else round(power_mw / 1e3, 1),
            "temperature_c": self._asked(
                lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            "reasons": self._reasons(),
            "default_sm_mhz": self.default_sm_mhz,
        }
        return {name: value for name, value in found.items() if value is not None}

    def process_bytes(self) -> int | None:
        """What this process holds on the GPU, in whatever library; None where NVML does not tell (in containers)."""
        listed = self._asked(lambda: self._nvml.nvmlDeviceGetComputeRunningProcesses(self._handle)) or []
        found = (process.usedGpuMemory for process in listed if process.pid == os.getpid())
        return next(found, None)

    def _reasons(self) -> list[str] | None:
        nvml = self._nvml
        ask = getattr(nvml, "nvmlDeviceGetCurrentClocksEventReasons", None)
        ask = ask or nvml.nvmlDeviceGetCurrentClocksThrottleReasons
        bits = self._asked(lambda: ask(self._handle))
        if bits is None:
            return None
        return [name for name in REASONS if bits & self._bit(name)]

    def _bit(self, name: str) -> int:
        for prefix in ("nvmlClocksEventReason", "nvmlClocksThrottleReason"):
            bit = getattr(self._nvml, prefix + name, None)
            if bit is not None:
                return int(bit)
        return 0

    def _asked(self, question: Callable[[], T]) -> T | None:
        try:
            return question()
        except self._nvml.NVMLError:  # not supported on this GPU, or not permitted
            return None


def throttled(state: dict[str, Any]) -> str:
    """Why a block measured in this state says little of the kernel; empty where it does not."""
    harmful = [name for name in state.get("reasons", ()) if name in HARMFUL]
    if harmful:
        return ", ".join(harmful)
    clock, default = state.get("sm_mhz"), state.get("default_sm_mhz")
    if clock and default and clock < SLOW * default:
        return f"SM clock {clock} MHz, {default} by default"
    return ""


def steady(
    take: Callable[[], Timed], state: GpuState | None, sleep: Callable[[float], None]
) -> tuple[Timed, dict[str, Any]]:
    """A block and the state that the GPU was in at its end; a throttled one is taken again, a few times.

    `retaken` says how often, `throttled` why the last one still is.
    """
    if state is None:
        return take(), {}
    timed, found = take(), state.read()
    again = 0
    while (reason := throttled(found)) and again < RETAKEN:
        sleep(BACK_OFF_S * 2**again)
        again += 1
        timed, found = take(), state.read()
    found |= {"retaken": again} if again else {}
    return timed, found | ({"throttled": reason} if reason else {})
