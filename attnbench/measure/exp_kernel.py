"""A GPU's rate of exponentials, by a Triton kernel that computes nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import triton
import triton.language as tl

from attnbench.measure.clocks import Clock

if TYPE_CHECKING:
    import torch

BLOCK = 1024  # eight independent values per thread of 4 warps
PROGRAMS_PER_SM = 16
ITERATIONS = 2048  # of 16 exponentials each: about a millisecond
UNROLLED = 16
LAUNCHES = 5


@triton.jit
def exp_kernel(out, steps, UNROLLED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Repeat x <- exp2(-x) in registers; it converges to 0.64, so it never overflows."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = at.to(tl.float32) * 1e-6
    for _ in range(steps):
        for _ in tl.static_range(UNROLLED):
            x = tl.exp2(-x)
    tl.store(out + at, x)


def exps_per_second(clock: Clock, device: str, programs: int | None = None, steps: int = ITERATIONS) -> float:
    """The best of a few launches that fill the GPU; the interpreter's test passes smaller `programs` and `steps`."""
    import torch

    if programs is None:
        programs = torch.cuda.get_device_properties(device).multi_processor_count * PROGRAMS_PER_SM
    out: torch.Tensor = torch.empty(programs * BLOCK, device=device)

    def call() -> None:
        exp_kernel[(programs,)](out, steps, UNROLLED=UNROLLED, BLOCK=BLOCK, num_warps=4)

    call()  # compiles it
    host_ms = min(clock.time(call, 1).host_ms, default=0.0)
    best_ms = min(clock.time(call, LAUNCHES, host_ms=host_ms).samples_ms)
    return programs * BLOCK * steps * UNROLLED / (best_ms / 1e3)
