"""The calls of a measurement: warm-up until stable, calls per sample, samples per block."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from attnbench.errors import AttnbenchError
from attnbench.measure.clocks import Call, Clock, CpuClock, Timed, held_ms

SAMPLE_MS = 1.0  # a sample of several calls is at most this long: the minimum of short ones avoids noise
BLOCK_MS = 12.0
MOST_SAMPLES = 64  # per block, so that its stored form stays small
SETTLED_WITHIN = 0.1  # the last three repetitions agree within this share
WARM_UP_MS = 150.0
HOST_CALLS = 3  # the first of them is cold


@dataclass(frozen=True)
class Pace:
    """How fast a warm call is, so how many make a sample; `settled`: the warm-up became stable.

    `host_ms` is the host's time to enqueue a call on a GPU; 0 elsewhere.
    """

    call_ms: float
    calls_per_sample: int
    warm_up_calls: int
    settled: bool
    host_ms: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """The pace as JSON values."""
        return asdict(self)

    def samples_in(self, block_ms: float) -> int:
        """How many samples fit into a block of this length; at least one."""
        return max(1, min(MOST_SAMPLES, int(block_ms / max(self._sample_ms, 1e-6))))

    def block_ms(self, block_ms: float) -> float:
        """How long such a block takes, its warming call included."""
        return self._sample_ms * self.samples_in(block_ms) + self.call_ms * self.warming_calls(block_ms)

    @property
    def _sample_ms(self) -> float:
        return self.call_ms * self.calls_per_sample + held_ms(self.host_ms)

    def warming_calls(self, block_ms: float) -> int:
        # Other backends ran since the last block; a call that takes longer than filling the caches needs none.
        return 1 if self.call_ms <= block_ms else 0


def find_pace(
    clock: Clock, call: Call, *, sample_ms: float = SAMPLE_MS, limit_ms: float = WARM_UP_MS
) -> Pace:
    """Warm up until three repetitions agree, or for `limit_ms`, and choose the calls per sample.

    Short calls are repeated in doubling batches first, so that the clock's own cost does not count. On a GPU the first
    calls tell how long the host takes to enqueue one.
    """
    calls, done, spent_ms, host_ms = 1, 0, 0.0, 0.0
    recent: list[float] = []
    enqueued_ms: list[float] = []
    while True:
        timed = _timed(clock, call, 1, calls, host_ms)
        call_ms = timed.samples_ms[0]
        done += calls
        if not host_ms:
            enqueued_ms += timed.host_ms
            if len(enqueued_ms) == HOST_CALLS:
                host_ms, recent = min(enqueued_ms), []
        spent_ms += call_ms * calls
        if clock.averages and call_ms * calls < sample_ms / 2 and calls < 1 << 16:
            calls, recent = 2 * calls, []
        else:
            recent = [*recent[-2:], call_ms]
        settled = len(recent) == 3 and max(recent) <= (1 + SETTLED_WITHIN) * min(recent)
        if settled or spent_ms >= limit_ms or done >= 1 << 20:
            break
    best_ms = min(recent, default=call_ms)
    per_sample = max(1, int(sample_ms / best_ms)) if clock.averages and best_ms > 0 else 1
    return Pace(best_ms, per_sample, done, settled, host_ms or min(enqueued_ms, default=0.0))


def time_block(clock: Clock, call: Call, pace: Pace, block_ms: float = BLOCK_MS) -> Timed:
    """One block of samples, after an uncounted call that refills the caches."""
    for _ in range(pace.warming_calls(block_ms)):
        call()
    return _timed(clock, call, pace.samples_in(block_ms), pace.calls_per_sample, pace.host_ms)


def _timed(clock: Clock, call: Call, samples: int, calls_per_sample: int, host_ms: float) -> Timed:
    # A call that runs in another process is timed there, without the transfer of its output.
    timed = getattr(call, "timed", None)
    if timed is None:
        return clock.time(call, samples, calls_per_sample, host_ms)
    return Timed(*timed(samples, calls_per_sample))


def slowed(call: Call, share: float, clock: object) -> Call:
    """`call` followed by a wait of `share` of its time: 0.05 makes it 5 % slower.

    The host waits, which would not slow a GPU's asynchronous kernels; that is refused, and so is a call that another
    process times.
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
