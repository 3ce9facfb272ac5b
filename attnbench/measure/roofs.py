"""The roofs of this machine: its best rates of matrix products, copies and exponentials."""

from __future__ import annotations

import time
from collections.abc import Callable
from subprocess import SubprocessError
from typing import TYPE_CHECKING, Any

from attnbench.backend.environments import importable
from attnbench.measure.clocks import Call, Clock, clock_for

if TYPE_CHECKING:
    import torch

REPETITIONS = 5
LONG_ENOUGH_MS = {"cpu": 10.0, "cuda": 2.0}  # of one call; shorter ones do not reach the roof
LARGEST_SIDE = {"cpu": 2048, "cuda": 8192}  # of the matrices
COPIED_BYTES = {"cpu": 64 << 20, "cuda": 1 << 30}  # well beyond the last cache
EXPS = 1 << 18  # 1 MiB of float32: stays in a core's cache, so that exponentials are the limit and not memory
EXPS_PER_CLOCK_PER_SM = 16
SLOWEST_CALL_MS = 60.0


def measure_roofs(device: str = "cpu") -> dict[str, Any]:
    """Best of a few calls each: `matmul_flops_per_s` by dtype, `copy_bytes_per_s`, `exps_per_s`.

    Bytes copied count twice, read and written. On CUDA the exponentials are timed by a Triton kernel; where Triton is
    missing or fails (it needs a C compiler) their rate is derived from the clock (16 per clock and SM), and
    `exps_derived` is true. A rate that cannot be
    measured is missing. `seconds` is the time that this took.
    """
    import torch

    start = time.perf_counter()
    kind = device.split(":")[0]
    clock = clock_for(device)
    matmul = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        matmul[name] = _matmul_rate(clock, dtype, device)
    rates: dict[str, Any] = {"matmul_flops_per_s": matmul, "copy_bytes_per_s": _copy_rate(clock, device)}
    if kind != "cuda":
        rates["exps_per_s"] = _exp_rate(clock, device)
    elif (timed := _gpu_exp_rate(clock, device)) is not None:
        rates["exps_per_s"] = timed
    elif (derived := _derived_exp_rate(device)) is not None:
        rates |= {"exps_per_s": derived, "exps_derived": True}
    return {**rates, "device": device, "seconds": round(time.perf_counter() - start, 3)}


def _best_ms(clock: Clock, call: Call) -> float:
    once = clock.time(call, 1)
    if once.samples_ms[0] > SLOWEST_CALL_MS:
        return once.samples_ms[0]
    return min(clock.time(call, REPETITIONS, host_ms=min(once.host_ms, default=0.0)).samples_ms)


def _matmul_rate(clock: Clock, dtype: torch.dtype, device: str) -> float:
    import torch

    kind, side, best = device.split(":")[0], 256, 0.0
    while True:
        a = torch.randn(side, side, dtype=torch.float32, device=device).to(dtype)  # zeros draw less power
        b = torch.randn(side, side, dtype=torch.float32, device=device).to(dtype)
        ms = _best_ms(clock, _product(a, b))
        best = max(best, 2 * side**3 / (ms / 1e3))
        if ms >= LONG_ENOUGH_MS[kind] or side >= LARGEST_SIDE[kind]:
            return best
        side *= 2


def _product(a: torch.Tensor, b: torch.Tensor) -> Callable[[], torch.Tensor]:
    return lambda: a @ b


def _copy_rate(clock: Clock, device: str) -> float:
    import torch

    size = COPIED_BYTES[device.split(":")[0]]
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * size / (_best_ms(clock, lambda: target.copy_(source)) / 1e3)


def _exp_rate(clock: Clock, device: str) -> float:
    import torch

    x = torch.randn(EXPS, device=device)
    out = torch.empty_like(x)
    return EXPS / (_best_ms(clock, lambda: torch.exp(x, out=out)) / 1e3)


def _gpu_exp_rate(clock: Clock, device: str) -> float | None:
    """By a Triton kernel; None if Triton is missing or cannot run one here: no sweep ends for a roof."""
    if not importable(("triton",)):
        return None
    from triton.errors import TritonError

    from attnbench.measure.exp_kernel import exps_per_second

    try:
        return exps_per_second(clock, device)
    except (TritonError, RuntimeError, AssertionError, OSError, SubprocessError):
        return None


def _derived_exp_rate(device: str) -> float | None:
    import torch

    properties = torch.cuda.get_device_properties(device)
    khz = getattr(properties, "clock_rate", None)
    return None if not khz else properties.multi_processor_count * EXPS_PER_CLOCK_PER_SM * khz * 1e3
