"""A throttled block is noticed, marked and retaken a limited number of times, by a scripted NVML."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from attnbench.measure import GpuState, Timed, steady
from attnbench.measure.gpu_state import MOST_RETAKES, throttled


class NVMLError(Exception):
    pass


class Nvml:
    """pynvml's names; `sm_mhz` and `reasons` are read from lists, whose last entry stays."""

    NVMLError = NVMLError
    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_COMPUTEMODE_DEFAULT, compute_mode = 0, 0
    nvmlClocksEventReasonGpuIdle = 1  # noqa: N815
    nvmlClocksEventReasonSwPowerCap = 4  # noqa: N815
    nvmlClocksThrottleReasonHwThermalSlowdown = 64  # noqa: N815 - a driver without the newer name

    def __init__(self, sm_mhz: list[int], reasons: list[int], applications_clock: int | None = None) -> None:
        self.sm_mhz, self.reasons, self.applications_clock = sm_mhz, reasons, applications_clock
        self.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=7 << 30)]

    def nvmlDeviceGetDefaultApplicationsClock(self, handle: Any, clock: int) -> int:
        if self.applications_clock is None:
            raise NVMLError("Not Supported")
        return self.applications_clock

    def nvmlDeviceGetMaxClockInfo(self, handle: Any, clock: int) -> int:
        return 2000

    def nvmlDeviceGetClockInfo(self, handle: Any, clock: int) -> int:
        if clock == self.NVML_CLOCK_MEM:
            return 3201
        return self.sm_mhz.pop(0) if len(self.sm_mhz) > 1 else self.sm_mhz[0]

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: Any) -> int:
        return self.reasons.pop(0) if len(self.reasons) > 1 else self.reasons[0]

    def nvmlDeviceGetComputeMode(self, handle: Any) -> int:
        return self.compute_mode

    def nvmlDeviceGetPowerUsage(self, handle: Any) -> int:
        return 651_234

    def nvmlDeviceGetTemperature(self, handle: Any, sensor: int) -> int:
        raise NVMLError("No Permission")

    def nvmlDeviceGetComputeRunningProcesses(self, handle: Any) -> list[Any]:
        return [SimpleNamespace(pid=os.getpid() + 1, usedGpuMemory=1), *self.processes]


def test_a_gpu_for_one_process_at_a_time_is_noticed() -> None:
    nvml = Nvml([1980], [0])
    assert not GpuState(nvml, "handle").is_exclusive()
    nvml.compute_mode = 3
    assert GpuState(nvml, "handle").is_exclusive()


def taken(nvml: Nvml | None) -> tuple[Timed, dict[str, Any], list[float]]:
    slept: list[float] = []
    blocks = iter(range(99))
    state = None if nvml is None else GpuState(nvml, "gpu")
    timed, figures = steady(lambda: Timed([float(next(blocks))], None, 0), state, slept.append)
    return timed, figures, slept


def test_a_block_carries_what_nvml_reports_and_no_placeholders() -> None:
    timed, figures, slept = taken(Nvml([1980], [4]))
    assert timed.samples_ms == [0.0]
    assert figures == {
        "sm_mhz": 1980,
        "memory_mhz": 3201,
        "power_w": 651.2,
        "reasons": ["SwPowerCap"],
        "default_sm_mhz": 2000,
    }
    assert slept == []


@pytest.mark.parametrize(("sm_mhz", "reasons"), [([1000, 1980], [0]), ([1980], [64, 0])])
def test_a_throttled_block_is_retaken_and_the_steady_one_is_kept(
    sm_mhz: list[int], reasons: list[int]
) -> None:
    timed, figures, slept = taken(Nvml(sm_mhz, reasons))
    assert timed.samples_ms == [1.0]
    assert figures["retaken"] == 1
    assert "throttled" not in figures
    assert slept == [0.05]


def test_a_gpu_that_stays_slow_is_marked_after_a_few_tries() -> None:
    timed, figures, slept = taken(Nvml([1980], [64]))
    assert timed.samples_ms == [float(MOST_RETAKES)]
    assert (figures["retaken"], figures["throttled"]) == (MOST_RETAKES, "HwThermalSlowdown")
    assert slept == [0.05, 0.1, 0.2]


def test_without_nvml_a_block_has_no_state() -> None:
    timed, figures, slept = taken(None)
    assert (timed.samples_ms, figures, slept) == ([0.0], {}, [])


def test_the_clock_is_compared_with_the_default_and_not_the_highest() -> None:
    assert GpuState(Nvml([1], [0], applications_clock=1300), "gpu").default_sm_mhz == 1300
    assert throttled({"sm_mhz": 1000, "default_sm_mhz": 1300}) == ""
    assert throttled({"sm_mhz": 974, "default_sm_mhz": 1300}) == "SM clock 974 MHz, 1300 by default"
    assert throttled({}) == ""


def test_an_idle_gpu_about_to_wake_and_a_power_cap_are_no_throttling_by_themselves() -> None:
    assert throttled({"reasons": ["GpuIdle", "SwPowerCap"], "sm_mhz": 1900, "default_sm_mhz": 1980}) == ""


def test_the_memory_of_a_process_is_its_own_or_unknown() -> None:
    nvml = Nvml([1], [0])
    assert GpuState(nvml, "gpu").process_bytes() == 7 << 30
    nvml.processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=None)]
    assert GpuState(nvml, "gpu").process_bytes() is None
    nvml.processes = []
    assert GpuState(nvml, "gpu").process_bytes() is None


def test_the_binding_has_the_names_that_are_used() -> None:
    pynvml = pytest.importorskip("pynvml", reason="pip install 'attnbench[gpu]'")
    from attnbench.measure.gpu_state import REASONS

    state = GpuState(SimpleNamespace(**vars(pynvml) | vars(SimpleNamespace(NVMLError=Exception))), None)
    assert all(state._bit(name) for name in REASONS)
    for name in ("DeviceGetHandleByUUID", "DeviceGetClockInfo", "DeviceGetComputeRunningProcesses"):
        assert callable(getattr(pynvml, f"nvml{name}"))
