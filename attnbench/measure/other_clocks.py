"""What do the other clocks of a GPU say of a case? A warm L2, and a graph without launches, beside the main clock."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from attnbench.measure.clocks import WarmCudaClock
from attnbench.measure.graphs import calls_for, copies_for, graph_ms, launch_bound, rotating

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
