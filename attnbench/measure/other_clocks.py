"""The other clocks of a GPU, beside the main one: a warm L2, and a CUDA graph without launch cost."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attnbench.measure.clocks import Hold, WarmCudaClock

if TYPE_CHECKING:
    from attnbench.backend.interface import Prepared
    from attnbench.problem import Inputs

GRAPH = "cuda_graph_rotating"
SAMPLES = 11
MOST_BYTES_SHARE = 0.25  # of the free memory, for copies of the inputs
MOST_COPIES = 1024  # each costs a node of the graph
L2_MULTIPLE = 5  # inputs of this many times the L2 leave nothing of themselves in it
GRAPH_CALLS = 8  # at least, so that they share the cost of one launch
REPLAYS = 5
REPLAY_HELD_MS = 0.2  # longer than the host takes to launch a graph
Calls = Sequence[Callable[[], Any]]


def other_clocks(
    cuda: Any,
    prepared: Prepared,
    inputs: Inputs,
    cold_ms: Mapping[str, float],
    host_ms: Mapping[str, float],
    l2_bytes: int,
    free_bytes: int,
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Milliseconds by clock and direction, and notes: `launch_bound`, or why a clock has no figure.

    `cold_ms` is the main clock's, by direction, and `host_ms` the host's time to enqueue a call. Backends that time
    themselves in another process have none.
    """
    times: dict[str, dict[str, float]] = {WarmCudaClock.name: {}, GRAPH: {}}
    notes: list[str] = []
    hold = Hold(cuda)
    input_bytes = sum(x.numel() * x.element_size() for x in inputs.tensors.values())
    enough = copies_for(input_bytes, l2_bytes)
    copies = min(enough, MOST_COPIES)
    if copies < enough:
        notes.append(f"the graph rotates {copies} copies of the inputs, not {enough}: part of the L2 is warm")
    for direction, events_ms in cold_ms.items():
        call = prepared.call(direction, inputs.dout)
        if hasattr(call, "timed"):
            return {}, []
        host = host_ms.get(direction, 0.0)
        if launch_bound(host, events_ms):
            notes.append(
                f"{direction}: launch_bound: the host takes {host:.3f} ms to start a call of {events_ms:.3f} ms"
            )
        warm = WarmCudaClock(cuda, hold).time(call, SAMPLES, host_ms=host)
        times[WarmCudaClock.name][direction] = statistics.median(warm.samples_ms)
        if copies * input_bytes > MOST_BYTES_SHARE * free_bytes:
            notes.append(f"{direction}: no graph, {copies} copies of the inputs are too large")
            continue
        reason = ""
        try:
            stream = cuda.Stream()
            with cuda.stream(stream):
                calls = rotating(prepared, inputs, copies, direction)
            if calls is None:
                reason = "the backend cannot be called on copies of its inputs"
            else:
                cuda.synchronize()
                times[GRAPH][direction] = graph_ms(cuda, calls, calls_for(copies), stream=stream, hold=hold)
        except RuntimeError as error:
            reason = str(error).split("\n")[0][:120]
        finally:
            prepared.drop_graph()
        if reason:
            notes.append(f"{direction}: no graph, {reason}")
    return {name: by_direction for name, by_direction in times.items() if by_direction}, notes


def copies_for(input_bytes: int, l2_bytes: int) -> int:
    """How many copies of the inputs rotate: ceil(5 L2 / bytes) + 1, or one if they are that large."""
    if input_bytes >= L2_MULTIPLE * l2_bytes:
        return 1
    return math.ceil(L2_MULTIPLE * l2_bytes / max(1, input_bytes)) + 1


def calls_for(copies: int) -> int:
    """How many calls a graph holds: each copy equally often, at least once."""
    return copies * math.ceil(GRAPH_CALLS / copies)


def graph_ms(
    cuda: Any, calls: Calls, count: int, stream: Any, hold: Hold | None = None, replays: int = REPLAYS
) -> float:
    """Milliseconds per call in the fastest replay of a graph of `count` calls, taken in turn from `calls`.

    `stream` is the one on which the calls were made (a backward runs on its forward's). Raises RuntimeError if a call
    cannot be captured: it waits for the device, or allocates outside torch.
    """
    with cuda.stream(stream):  # libraries allocate their workspaces before the capture
        for call in calls:
            call()
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph, stream=stream):
        for n in range(count):
            calls[n % len(calls)]()
    graph.replay()  # uploads it
    hold = hold or Hold(cuda)
    starts, ends = ([cuda.Event(enable_timing=True) for _ in range(replays)] for _ in range(2))
    cuda.synchronize()
    for start, end in zip(starts, ends, strict=True):
        hold(REPLAY_HELD_MS)
        start.record()
        graph.replay()
        end.record()
        cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)) / count


def rotating(
    prepared: Prepared, inputs: Inputs, copies: int, direction: str
) -> list[Callable[[], Any]] | None:
    """The calls of one direction on copies of the inputs; None if the backend cannot be called on other tensors.

    The forward that a backward needs runs here, on the current stream.
    """
    calls = [prepared.call(direction, inputs.dout)]
    for _ in range(copies - 1):
        fresh = inputs.fresh()
        other = prepared.on(fresh.q, fresh.k, fresh.v)
        if other is None:
            return None
        calls.append(other.call(direction, fresh.dout))
    return calls


def launch_bound(host_ms: float, device_ms: float) -> bool:
    """Whether the host takes longer to start a call than the device to run it: in a loop, the device waits."""
    return host_ms > device_ms
