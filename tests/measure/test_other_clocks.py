"""The warm L2 and the CUDA graph are timed as named, on a recording device."""

from __future__ import annotations

from typing import Any

import pytest

from attnbench.backend import Output, Prepared, resolve
from attnbench.measure.clocks import WarmCudaClock
from attnbench.measure.other_clocks import (
    GRAPH,
    calls_for,
    copies_for,
    graph_ms,
    launch_bound,
    other_clocks,
    rotating,
)
from attnbench.problem import Case, make_inputs

MIB = 1 << 20


@pytest.mark.parametrize(
    ("input_bytes", "copies"),
    # 60 MiB of L2: ceil(300 / 70) + 1; a copy of 299 MiB still leaves its end behind; 300 MiB leave nothing.
    [(70 * MIB, 6), (299 * MIB, 3), (300 * MIB, 1), (400 * MIB, 1)],
)
def test_so_many_copies_rotate_that_none_is_left_in_the_cache(input_bytes: int, copies: int) -> None:
    assert copies_for(input_bytes, 60 * MIB) == copies
    between = (copies - 1) * input_bytes  # what is read before a copy's turn comes again
    assert copies == 1 or between >= 5 * 60 * MIB


@pytest.mark.parametrize("copies", [1, 3, 6, 8, 9, 300])
def test_a_graph_holds_whole_turns_of_all_copies(copies: int) -> None:
    count = calls_for(copies)
    assert count >= copies
    assert count % copies == 0
    assert count >= 8


def test_the_time_of_a_graph_has_no_launches_in_it_and_is_of_one_call(cuda: Any) -> None:
    calls = [lambda n=n: cuda.runs(f"copy {n}", 2.0, launch_ms=7.0) for n in range(3)]
    assert graph_ms(cuda, calls, count=9, stream="side") == pytest.approx(2.0)
    captured = cuda.log[cuda.log.index("synchronize") + 1 : cuda.log.index("replay")]
    assert captured == ["copy 0", "copy 1", "copy 2"] * 3


def test_a_call_that_waits_for_the_device_is_not_captured(cuda: Any) -> None:
    with pytest.raises(AssertionError, match="must not wait"):
        graph_ms(cuda, [cuda.synchronize], count=8, stream="side")


class Kernel(Prepared):
    """A case whose forward takes `ms` on the device and `launch_ms` of launching."""

    def __init__(self, cuda: Any, ms: float, launch_ms: float, copyable: bool = True) -> None:
        super().__init__()
        self.cuda, self.ms, self.launch_ms, self.copyable = cuda, ms, launch_ms, copyable
        self.of: Any = None

    def forward(self) -> Output:
        self.cuda.runs("kernel", self.ms, self.launch_ms)
        if self.cuda.capturing is not None and self.ms == 13.0:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return Output(self.of)

    def backward(self, dout: Any) -> Any:
        raise AssertionError

    def on(self, q: Any, k: Any, v: Any) -> Kernel | None:
        made = Kernel(self.cuda, self.ms, self.launch_ms) if self.copyable else None
        if made is not None:
            made.of = q
        return made


def beside(cuda: Any, kernel: Kernel, events_ms: float, host_ms: float) -> Any:
    inputs = make_inputs(Case(q_len=8, k_len=8, q_heads=1, head_dim=8, dtype="fp32"))
    return other_clocks(
        cuda, kernel, inputs, {"fwd": events_ms}, {"fwd": host_ms}, l2_bytes=1024, free_bytes=MIB
    )


def test_both_clocks_are_named_beside_the_main_one_and_hold_no_launch(cuda: Any) -> None:
    times, notes = beside(cuda, Kernel(cuda, ms=2.0, launch_ms=0.1), events_ms=2.0, host_ms=0.1)
    assert times == {WarmCudaClock.name: {"fwd": pytest.approx(2.0)}, GRAPH: {"fwd": pytest.approx(2.0)}}
    assert notes == []


def test_a_call_that_the_host_starts_more_slowly_than_it_runs_is_launch_bound(cuda: Any) -> None:
    _, notes = beside(cuda, Kernel(cuda, ms=2.0, launch_ms=3.0), events_ms=2.0, host_ms=3.0)
    assert notes == ["fwd: launch_bound: the host takes 3.000 ms to start a call of 2.000 ms"]
    assert not launch_bound(host_ms=2.0, device_ms=2.1)


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ({"ms": 13.0}, "operation not permitted when stream is capturing"),
        ({"copyable": False}, "on copies of its inputs"),
    ],
)
def test_a_clock_that_has_no_figure_says_why(cuda: Any, kernel: dict[str, Any], words: str) -> None:
    times, notes = beside(
        cuda, Kernel(cuda, **({"ms": 2.0, "launch_ms": 1.0} | kernel)), events_ms=3.0, host_ms=1.0
    )
    assert list(times) == [WarmCudaClock.name]
    (note,) = notes
    assert note == f"fwd: no graph, {note.split(', ', 1)[1]}"
    assert words in note
    assert "and more" not in note


def test_copies_are_of_fresh_storage_and_the_same_numbers() -> None:
    case = Case(q_len=8, k_len=8, q_heads=1, head_dim=8, dtype="fp32", direction="fwd_bwd")
    inputs = make_inputs(case)
    prepared = resolve("naive").prepare(case, inputs)
    calls = rotating(prepared, inputs, 3, "bwd")
    assert calls is not None
    gradients = [call() for call in calls]
    assert all((x.dq == gradients[0].dq).all() for x in gradients)
    owners = {call.func.__self__._q.data_ptr() for call in calls}  # type: ignore[attr-defined]
    assert len(owners) == 3
