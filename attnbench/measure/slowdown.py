"""How is a call made slower by a known share? A busy wait after it: what a gate's power is measured with."""

from __future__ import annotations

from typing import Any

from attnbench.errors import AttnbenchError
from attnbench.measure.clocks import Call, CpuClock


def slowed(call: Call, share: float, clock: object) -> Call:
    """`call` and then `share` of the time that it took: 0.05 makes it 5 % slower.

    The wait is of the host; on a GPU, where calls return before they are done, it would slow nothing, so that is
    refused. So is a call that another process times.
    """
    if not isinstance(clock, CpuClock):
        raise AttnbenchError("a call can be slowed on a CPU only: a wait of the host slows no kernel")
    if hasattr(call, "timed"):
        raise AttnbenchError(
            "a backend in another environment times its calls there, and cannot be slowed here"
        )

    now_ns = clock.now_ns

    def slower() -> Any:
        start_ns = now_ns()
        returned = call()
        done_ns = now_ns()
        until_ns = done_ns + round(share * (done_ns - start_ns))
        while now_ns() < until_ns:
            pass
        return returned

    return slower
