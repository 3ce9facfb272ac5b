"""The harness's own cost as ratios measured side by side in one run, printed; nothing is asserted.

Run by `make perf`. Each row is the median over rounds of (ours / bare). Both alternate within a round, so that a busy
machine affects both.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from rich.console import Console
from rich.table import Table

from attnbench.backend import resolve
from attnbench.judge import judge, make_reference
from attnbench.measure import clock_for, find_pace, time_block
from attnbench.problem import Case, Causal, make_inputs
from attnbench.sweep.bench import Bench

ROUNDS = 15


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratios(
    ours: Callable[[], float], bare: Callable[[], float], rounds: int = ROUNDS
) -> tuple[float, float, float]:
    """Median, and the lower and upper quartile, of ours / bare over rounds that alternate the order."""
    quotients = []
    for turn in range(rounds):
        if turn % 2:
            below, above = bare(), ours()
        else:
            above, below = ours(), bare()
        quotients.append(above / below)
    low, middle, high = statistics.quantiles(quotients, n=4)
    return middle, low, high


def timed_loop() -> tuple[float, float, float]:
    """A sample of the CPU clock beside a bare loop of as many calls."""
    case = Case(q_len=64, k_len=64, q_heads=2, head_dim=32, dtype="fp32")
    prepared = resolve("naive").prepare(case, make_inputs(case))
    clock, call = clock_for("cpu"), prepared.forward
    pace = find_pace(clock, call)
    calls = pace.calls_per_sample

    def bare() -> float:
        def loop() -> None:
            for _ in range(calls):
                call()

        return seconds(loop) / calls

    return ratios(lambda: min(time_block(clock, call, pace, 2.0).samples_ms) / 1e3, bare, 60)


def reference(direction: Literal["fwd", "fwd_bwd"]) -> tuple[float, float, float]:
    """The float64 reference with its noise, beside one plain float32 evaluation of the case."""
    case = Case(
        q_len=512, k_len=512, q_heads=8, head_dim=64, dtype="fp32", mask=Causal(), direction=direction
    )
    inputs = make_inputs(case)
    prepared = resolve("naive").prepare(case, inputs)

    def plain() -> float:
        def once() -> None:
            prepared.forward()
            if inputs.dout is not None:
                prepared.backward(inputs.dout)

        return seconds(once)

    plain()
    return ratios(lambda: seconds(lambda: make_reference(inputs)), plain, 5)


def verdict() -> tuple[float, float, float]:
    """Judging an output against a computed reference, beside the forward that made it."""
    case = Case(q_len=512, k_len=512, q_heads=8, head_dim=64, dtype="fp32", mask=Causal())
    inputs = make_inputs(case)
    prepared, right = resolve("naive").prepare(case, inputs), make_reference(inputs)
    output = prepared.forward()
    return ratios(
        lambda: seconds(lambda: judge(right, output, None, inputs)), lambda: seconds(prepared.forward)
    )


def importing() -> tuple[float, float, float]:
    """`import torch, attnbench` and a first case, beside `import torch`."""

    def run(program: str) -> float:
        return seconds(lambda: subprocess.run([sys.executable, "-c", program], check=True))

    return ratios(lambda: run("import torch, attnbench; attnbench.Case"), lambda: run("import torch"), 5)


def warm_case() -> str:
    """The time of a warm worker for all steps of a tiny case but warm-up and rounds."""
    case = Case(q_len=64, k_len=64, q_heads=2, head_dim=32, dtype="fp32", direction="fwd_bwd")
    backend = resolve("naive")
    backend.capabilities = replace(backend.capabilities, timed=False)
    bench = Bench("cpu")
    bench.open(backend)
    bench.settle(None)  # as a worker does: loaded objects are not collected again
    with tempfile.TemporaryDirectory() as scratch:
        path = f"{scratch}/reference.npz"
        bench.reference(case.to_json(), 0, "randn", "dense", path)

        def steps() -> None:
            bench.admit(case.to_json())
            bench.judge(case.to_json(), 0, "randn", path)
            bench.release()

        steps()
        milliseconds = sorted(1e3 * seconds(steps) for _ in range(ROUNDS))
    return f"{milliseconds[len(milliseconds) // 2]:.1f} ms (best {milliseconds[0]:.1f})"


def long_reference() -> str:
    """The reference of 32k x 32k, one head, forward and backward: seconds and the rise of peak memory."""
    case = Case(
        q_len=32768, k_len=32768, q_heads=1, head_dim=64, dtype="bf16", mask=Causal(), direction="fwd_bwd"
    )
    inputs = make_inputs(case)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spent = seconds(lambda: make_reference(inputs))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return f"{spent:.1f} s on this machine, {grown / 1024:.0f} MiB more at the peak"


def main() -> None:
    table = Table("what", "ours / bare", "quartiles", title="the harness's own cost")
    rows = {
        "a timed sample / a bare loop of the same calls": timed_loop,
        "a verdict / the forward it judges (causal 512, 8 heads)": verdict,
        "a reference / a plain fp32 forward": lambda: reference("fwd"),
        "a reference / a plain fp32 forward + backward": lambda: reference("fwd_bwd"),
        "import torch, attnbench / import torch": importing,
    }
    for what, measure in rows.items():
        middle, low, high = measure()
        table.add_row(what, f"{middle:.3f}", f"{low:.3f} to {high:.3f}")
    console = Console()
    console.print(table)
    console.print(f"fixed cost of a warm case, forward + backward: {warm_case()}")
    console.print(f"reference of 32k x 32k, one head, forward + backward: {long_reference()}")


if __name__ == "__main__":
    main()
