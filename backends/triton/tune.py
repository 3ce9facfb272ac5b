"""Which configuration is fastest on this GPU? Measured kernel by kernel, checked, and kept for the next run.

    attnbench tune triton                      # or: python -m attnbench_backends.triton.tune
    python -m attnbench_backends.triton.tune --out results/nvidia-h200   # beside the results as well

What is found goes to the user's cache and from then on takes precedence over the rule (configurations.py); the
maintainer copies a file of --out to configurations.json to ship it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import median

import torch

from attnbench.backend import Gradients, Output
from attnbench.errors import AttnbenchError
from attnbench.judge import judge, make_reference
from attnbench.problem import Case, Causal, Full, Inputs, SlidingWindow, make_inputs

from .configurations import Configuration, Kernel, cache_file, chosen, key, tuned
from .launch import Launch, Plan

REPEATS, WARM_UPS = 10, 3
KERNELS: tuple[Kernel, ...] = ("forward", "dk_dv", "dq")
NAMES = {"forward_kernel": "forward", "dk_dv_kernel": "dk_dv", "dq_kernel": "dq"}


def cases() -> Iterator[Case]:
    """What is tuned for: dense and sparse masks at the head dims that models use, 16k tokens."""
    for head_dim, mask in product((128, 64, 256), (Causal(), Full(), Causal() & SlidingWindow(1023, 0))):
        heads = 2048 // head_dim
        yield Case(
            batch=2, q_len=8192, k_len=8192, q_heads=heads, head_dim=head_dim, dtype="bf16", mask=mask,
            direction="fwd_bwd",
        )  # fmt: skip


def candidates(kernel: Kernel, head_dim: int, hopper: bool, narrow: bool = False) -> Iterator[Configuration]:
    """The configurations worth a measurement; those that do not compile or fit are skipped when tried.

    Most of the time goes into compiling them. `narrow`: fewer, where minutes count.
    """
    queries = (64, 128) if kernel != "dk_dv" else (32, 64, 128)
    keys = (32, 64, 128) if kernel != "dk_dv" else (64, 128)
    together = (True, False) if kernel == "dk_dv" and head_dim > 64 else (True,)
    if narrow:
        queries, keys = queries[-2:], keys[-2:]
    stages = (2, 3) if narrow else (1, 2, 3)
    descriptors = ((True,) if narrow else (False, True)) if hopper else (False,)
    ways = product(queries, keys, (4, 8), stages, descriptors, together)
    yield from (Configuration(*way) for way in ways)


def tiles_with(plan: Plan, kernel: Kernel, tried: Configuration) -> Callable[[Kernel], Configuration]:
    """The plan's own tiles, but for one kernel the one that is tried."""
    capability = torch.cuda.get_device_capability(plan.device)
    return lambda asked: tried if asked == kernel else chosen(asked, plan.case, capability)


def milliseconds(case: Case, inputs: Inputs, kernel: Kernel, tried: Configuration) -> float:
    """The median time of one kernel's launches with a configuration; raises what Triton raises if it does not fit."""
    plan = Plan(case, inputs.device)
    plan.tiles = tiles_with(plan, kernel, tried)
    times: list[float] = []

    def timed(launch: Launch) -> None:
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        launch.run()
        end.record()
        if NAMES.get(launch.kernel.__name__) == kernel:
            end.synchronize()
            times.append(start.elapsed_time(end))

    plan.start = timed
    changes = plan.bind(())
    runs: list[float] = []
    for _ in range(WARM_UPS + REPEATS):
        times.clear()
        out, lse = plan.forward(inputs.q, inputs.k, inputs.v, changes)
        if kernel != "forward":
            assert inputs.dout is not None
            plan.backward(inputs.q, inputs.k, inputs.v, changes, out, lse, inputs.dout)
        runs.append(sum(times))
    return median(runs[WARM_UPS:])


def is_right(case: Case, kernel: Kernel, tried: Configuration) -> bool:
    """Whether a short case with ragged ends is computed rightly with the configuration."""
    short = replace(case, batch=1, q_heads=2, kv_heads=2, q_len=1100, k_len=1100)
    inputs = make_inputs(short, device="cuda")
    plan = Plan(short, inputs.device)
    plan.tiles = tiles_with(plan, kernel, tried)
    changes = plan.bind(())
    out, lse = plan.forward(inputs.q, inputs.k, inputs.v, changes)
    assert inputs.dout is not None
    dq, dk, dv, _ = plan.backward(inputs.q, inputs.k, inputs.v, changes, out, lse, inputs.dout)
    return judge(make_reference(inputs), Output(out, lse), Gradients(dq, dk, dv), inputs).ok


def best(
    case: Case, inputs: Inputs, kernel: Kernel, capability: tuple[int, int], narrow: bool = False
) -> tuple[Configuration, float]:
    """The fastest configuration that is right, and its time."""
    measured: list[tuple[float, Configuration]] = []
    hopper = capability >= (9, 0)
    for tried in {chosen(kernel, case, capability), *candidates(kernel, case.head_dim, hopper, narrow)}:
        try:
            measured.append((milliseconds(case, inputs, kernel, tried), tried))
        except Exception as reason:  # noqa: BLE001 - Triton raises many kinds for what does not compile or fit
            sys.stderr.write(f"{kernel} {tried}: {type(reason).__name__}\n")
    for elapsed, tried in sorted(measured, key=lambda pair: pair[0]):
        if is_right(case, kernel, tried):
            return tried, elapsed
    raise AttnbenchError(f"no configuration of {kernel} is right on {case.id}; run attnbench check triton")


def main(arguments: list[str]) -> int:
    """Tune every kernel and case, writing after each so that an interruption loses nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="a folder that gets configurations.json too; entries there are kept"
    )
    parser.add_argument("--narrow", action="store_true", help="fewer candidates, where minutes count")
    given = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.stderr.write("tune: there is no CUDA GPU here; the rule of configurations.py holds without it\n")
        return 3
    capability = torch.cuda.get_device_capability()
    found = {name: asdict(configuration) for name, configuration in tuned().items()}
    places = [cache_file()] + ([given.out / "configurations.json"] if given.out else [])
    done: set[str] = set()
    if given.out and places[-1].is_file():  # an earlier run's, perhaps cut off: it goes on there
        before = json.loads(places[-1].read_text(encoding="utf-8"))
        found, done = found | before, set(before)
    for case in cases():
        inputs = make_inputs(case, device="cuda")
        for kernel in KERNELS:
            name = key(kernel, case, capability)
            if name in done:
                continue
            configuration, elapsed = best(case, inputs, kernel, capability, given.narrow)
            done.add(name)  # causal and full are one entry: the first, causal, decides
            found[name] = asdict(configuration)
            sys.stdout.write(f"{name}: {elapsed:.3f} ms, {configuration}\n")
            sys.stdout.flush()
            for place in places:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
