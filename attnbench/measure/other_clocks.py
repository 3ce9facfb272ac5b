"""What do the other clocks of a GPU say of a case? A warm L2, and a graph without launches, beside the main clock."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attnbench.measure.clocks import WarmCudaClock

if TYPE_CHECKING:
    from attnbench.backend.interface import Prepared
    from attnbench.problem import Inputs
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from attnbench.backend.interface import Prepared
    from attnbench.problem import Inputs

GRAPH = "cuda_graph_rotating"
SAMPLES = 11
MOST_BYTES_SHARE = 0.25  # of the free memory, for copies of the inputs
MOST_COPIES = 1024  # each costs a node of the graph


def other_clocks(
    cuda: Any,
    prepared: Prepared,
    inputs: Inputs,
    cold_ms: Mapping[str, float],
    l2_bytes: int,
    free_bytes: int,
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Milliseconds by clock and direction, and remarks: `launch_bound`, or why a clock has no figure.

    `cold_ms` is the main clock's by direction. Backends that time themselves elsewhere have none of these.
    """
    found: dict[str, dict[str, float]] = {WarmCudaClock.name: {}, GRAPH: {}}
    notes: list[str] = []
    size = sum(x.numel() * x.element_size() for x in inputs.tensors.values())
    wanted = copies_for(size, l2_bytes)
    copies = min(wanted, MOST_COPIES)
    if copies < wanted:
        notes.append(f"the graph rotates {copies} copies of the inputs, not {wanted}: part of the L2 is warm")
    for direction, events_ms in cold_ms.items():
        call = prepared.call(direction, inputs.dout)
        if hasattr(call, "timed"):
            return {}, []
        warm = WarmCudaClock(cuda).time(call, SAMPLES)
        found[WarmCudaClock.name][direction] = statistics.median(warm.samples_ms)
        if copies * size > MOST_BYTES_SHARE * free_bytes:
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
                found[GRAPH][direction] = graph_ms(cuda, calls, calls_for(copies), stream=stream)
        except RuntimeError as problem:
            reason = str(problem).split("\n")[0][:120]
        finally:
            prepared.drop_graph()
        if reason:
            notes.append(f"{direction}: no graph, {reason}")
        elif launch_bound(events_ms, found[GRAPH][direction]):
            notes.append(f"{direction}: launch_bound")
    return {name: times for name, times in found.items() if times}, notes


FAR_BEYOND = 5  # times the L2: inputs of this size find nothing of theirs left in it
CALLS = 8  # of a graph, at least: one launch is shared by them
REPLAYS = 5
LAUNCH_BOUND = 0.10  # events and graph differ by more than this share of the graph's time
Calls = Sequence[Callable[[], Any]]


def copies_for(input_bytes: int, l2_bytes: int) -> int:
    """How many copies of the inputs rotate: ceil(5 L2 / bytes) + 1; one where they are that large by themselves."""
    if input_bytes >= FAR_BEYOND * l2_bytes:
        return 1
    return math.ceil(FAR_BEYOND * l2_bytes / max(1, input_bytes)) + 1


def calls_for(copies: int) -> int:
    """How many calls a graph holds: whole turns of the copies, N >= copies."""
    return copies * math.ceil(CALLS / copies)


def graph_ms(cuda: Any, calls: Calls, count: int, stream: Any, replays: int = REPLAYS) -> float:
    """Milliseconds a call in the fastest replay of a graph of `count` calls, taken in turn from `calls`.

    `stream` is the one on which the calls were made (a backward runs on its forward's). Raises RuntimeError where a
    call cannot be captured: it waits for the device, or allocates outside torch.
    """
    with cuda.stream(stream):  # libraries make their workspaces before the capture
        for call in calls:
            call()
    cuda.synchronize()
    graph = cuda.CUDAGraph()
    with cuda.graph(graph, stream=stream):
        for n in range(count):
            calls[n % len(calls)]()
    graph.replay()  # uploads it
    starts, ends = ([cuda.Event(enable_timing=True) for _ in range(replays)] for _ in range(2))
    cuda.synchronize()
    for start, end in zip(starts, ends, strict=True):
        start.record()
        graph.replay()
        end.record()
        cuda.synchronize()
    return min(start.elapsed_time(end) for start, end in zip(starts, ends, strict=True)) / count


def rotating(
    prepared: Prepared, inputs: Inputs, copies: int, direction: str
) -> list[Callable[[], Any]] | None:
    """The calls of one direction on copies of the inputs; None where the backend cannot be called on other tensors.

    A backward gets the forward that it needs here, on the stream that is current.
    """
    found = [prepared.call(direction, inputs.dout)]
    for _ in range(copies - 1):
        fresh = inputs.fresh()
        other = prepared.on(fresh.q, fresh.k, fresh.v)
        if other is None:
            return None
        found.append(other.call(direction, fresh.dout))
    return found


def launch_bound(events_ms: float, without_launch_ms: float) -> bool:
    """Whether a call by itself takes so much longer than in a graph that its launch is what is measured."""
    return events_ms > (1 + LAUNCH_BOUND) * without_launch_ms
