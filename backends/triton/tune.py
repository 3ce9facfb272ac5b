"""Finds the fastest configuration on this GPU: measures kernel by kernel, checks, and keeps it for the next run.

    attnbench tune triton                      # or: python -m attnbench_backends.triton.tune
    python -m attnbench_backends.triton.tune --out results/nvidia-h200   # also beside the results

The result goes to the user's cache and takes precedence over the rule (configurations.py); to ship it, the
maintainer copies a file of --out to configurations.json. Tile sizes are tried first, then, with the best size, the
orders of the tiles and persistent programs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from statistics import median

import torch

from attnbench.backend import Gradients, Output
from attnbench.device import is_context_lost
from attnbench.errors import AttnbenchError
from attnbench.judge import judge, make_reference
from attnbench.problem import Case, Causal, Full, Inputs, SlidingWindow, make_inputs

from .configurations import WALKING, WAVES, Configuration, Kernel, cache_file, chosen, entries_of, key
from .launch import Launch, Plan

REPEATS, WARM_UPS = 10, 3
ALL_HEADS = 1_000  # waves: more than any launch has
REHEARSED = (9, 0)  # the compute capability whose rule is tried without a GPU
Note = Callable[[Case, Kernel, Configuration, float], None]  # receives every measurement, in milliseconds


def cases(rehearses: bool = False) -> Iterator[Case]:
    """The tuned cases: dense and sparse masks at the head dims that models use, 16k tokens."""
    for head_dim, mask in product((128, 64, 256), (Causal(), Full(), Causal() & SlidingWindow(1023, 0))):
        heads = 2048 // head_dim
        case = Case(
            batch=2, q_len=8192, k_len=8192, q_heads=heads, head_dim=head_dim, dtype="bf16", mask=mask,
            direction="fwd_bwd",
        )  # fmt: skip
        if rehearses:
            yield replace(
                case, batch=1, q_len=40, k_len=40, q_heads=1, kv_heads=1, head_dim=16, v_dim=16, dtype="fp32"
            )
            return
        yield case


def sizes(kernel: Kernel, head_dim: int, hopper: bool, tried: str) -> Iterator[Configuration]:
    """The tiles worth a measurement; those that do not compile or fit are skipped later.

    Compiling them takes most of the time: `tried` is "all", "few" or "none" of them.
    """
    if tried == "none":
        return
    few = tried == "few"
    queries = (64, 128) if kernel != "dk_dv" else (32, 64, 128)
    keys = (32, 64, 128) if kernel != "dk_dv" else (64, 128)
    together = (True, False) if kernel == "dk_dv" and head_dim > 64 else (True,)
    if few:
        queries, keys = queries[-2:], keys[-2:]
    stages = (2, 3) if few else (1, 2, 3)
    descriptors = ((True,) if few else (False, True)) if hopper else (False,)
    ways = product(queries, keys, (4, 8), stages, descriptors, together)
    yield from (Configuration(*way) for way in ways)


def walks(tile: Configuration) -> Iterator[Configuration]:
    """The same tile in every order, with one program per tile, or one or two persistent ones per multiprocessor.

    Persistent programs need more registers, so they are also tried with half the queries.
    """
    for waves in (0, WAVES, ALL_HEADS):
        yield replace(tile, waves=waves, persistent=0)
        for persistent, block_q in product((1, 2), sorted({tile.block_q, max(16, tile.block_q // 2)})):
            yield replace(tile, waves=waves, persistent=persistent, block_q=block_q)


def tiles_with(
    case: Case, capability: tuple[int, int], kernel: Kernel, tried: Configuration
) -> Callable[[Kernel], Configuration]:
    """The chosen tiles of a case, but `tried` for one kernel."""
    return lambda each: tried if each == kernel else chosen(each, case, capability)


def elapsed_ms(launch: Launch, device: torch.device) -> float:
    """The time of a launch."""
    if device.type != "cuda":
        began = time.perf_counter()
        launch.run()
        return (time.perf_counter() - began) * 1e3
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    launch.run()  # keeps the GPU busy while the host enqueues the next one, whose time then has no launch latency
    start.record()
    launch.run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def milliseconds(inputs: Inputs, kernel: Kernel, tiles: Callable[[Kernel], Configuration]) -> float:
    """The median time of one kernel's launches with these tiles; raises what Triton raises if they do not fit."""
    times: list[float] = []

    def start(launch: Launch) -> None:
        if launch.name == kernel:
            times.append(elapsed_ms(launch, inputs.device))
        else:
            launch.run()

    plan = Plan(inputs.case, inputs.device, tiles, start)
    changes = plan.bind(())
    on_gpu = inputs.device.type == "cuda"
    runs: list[float] = []
    for _ in range(WARM_UPS + REPEATS if on_gpu else 1):
        times.clear()
        out, lse = plan.forward(inputs.q, inputs.k, inputs.v, changes)
        if kernel != "forward":
            assert inputs.dout is not None
            plan.backward(inputs.q, inputs.k, inputs.v, changes, out, lse, inputs.dout)
        runs.append(sum(times))
    return median(runs[WARM_UPS:] if on_gpu else runs)


def is_right(case: Case, device: torch.device, tiles: Callable[[Kernel], Configuration]) -> bool:
    """Whether a short case with ragged ends is right with these tiles."""
    length, heads = (1100, 2) if device.type == "cuda" else (70, 1)
    short = replace(case, batch=1, q_heads=heads, kv_heads=heads, q_len=length, k_len=length)
    inputs = make_inputs(short, device=str(device))
    # So few multiprocessors that persistent programs walk over several tiles.
    plan = Plan(short, inputs.device, tiles, processors=2)
    changes = plan.bind(())
    out, lse = plan.forward(inputs.q, inputs.k, inputs.v, changes)
    assert inputs.dout is not None
    dq, dk, dv, _ = plan.backward(inputs.q, inputs.k, inputs.v, changes, out, lse, inputs.dout)
    return judge(make_reference(inputs), Output(out, lse), Gradients(dq, dk, dv), inputs).ok


def fastest(
    inputs: Inputs,
    kernel: Kernel,
    capability: tuple[int, int],
    candidates: Iterable[Configuration],
    note: Note,
) -> tuple[Configuration, float]:
    """The fastest of these configurations that is right, and its time; `note` receives each."""
    case = inputs.case
    measured: list[tuple[float, Configuration]] = []
    for tried in candidates:
        try:
            median_ms = milliseconds(inputs, kernel, tiles_with(case, capability, kernel, tried))
        except Exception as error:  # Triton raises many kinds for what does not compile or fit
            if is_context_lost(error):
                raise AttnbenchError(
                    f"{kernel} {tried} lost the GPU's context ({error}): each later figure would be an error; run "
                    "again, what is tuned is kept"
                ) from error
            sys.stderr.write(f"{kernel} {tried}: {type(error).__name__}\n")
            continue
        measured.append((median_ms, tried))
        note(case, kernel, tried, median_ms)
    for median_ms, tried in sorted(measured, key=lambda pair: pair[0]):
        if is_right(case, inputs.device, tiles_with(case, capability, kernel, tried)):
            return tried, median_ms
    raise AttnbenchError(f"no configuration of {kernel} is right on {case.id}; run attnbench check triton")


def tuned_for(
    case: Case, device: str, capability: tuple[int, int], tried: str, done: Collection[str], note: Note
) -> Iterator[tuple[str, Configuration, float]]:
    """(entry, fastest configuration, its time) of each kernel that is not done: first its size, then its walk."""
    inputs = make_inputs(case, device=device)
    for kernel in WALKING:
        entry = key(kernel, case, capability)
        if entry in done:
            continue
        candidates = {chosen(kernel, case, capability)}
        candidates |= set(sizes(kernel, case.head_dim, capability >= (9, 0), tried))
        tile, _ = fastest(inputs, kernel, capability, candidates, note)
        yield entry, *fastest(inputs, kernel, capability, walks(tile), note)


def main(arguments: list[str]) -> int:
    """Tune every kernel and case; each is written at once, so that an interruption loses nothing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, help="folder that also gets configurations.json (its entries are kept) and tried.jsonl"
    )  # fmt: skip
    parser.add_argument(
        "--sizes", choices=("all", "few", "none"), default="all",
        help="tile sizes to try before the walks; none: only the one that runs now",
    )  # fmt: skip
    parser.add_argument(
        "--rehearse", action="store_true", help="one small case in the interpreter; its figures mean nothing"
    )
    options = parser.parse_args(arguments)
    if options.rehearse and options.out is None:
        parser.error("--rehearse needs --out: its figures do not belong in the user's cache")
    if not options.rehearse and not torch.cuda.is_available():
        sys.stderr.write("tune: there is no CUDA GPU here; the rule of configurations.py applies\n")
        return 3
    device, capability = (
        ("cpu", REHEARSED) if options.rehearse else ("cuda", torch.cuda.get_device_capability())
    )
    places = [] if options.rehearse else [cache_file()]
    if options.out:
        places.append(options.out / "configurations.json")
    # Each file keeps its own entries: a copy in the cache would hide those shipped with a later version.
    before = (
        entries_of(places[-1]) if options.out else {}
    )  # an earlier run's, perhaps cut off: it goes on there
    kept, done = {place: entries_of(place) | before for place in places}, set(before)
    for place in places:
        place.parent.mkdir(parents=True, exist_ok=True)

    def note(case: Case, kernel: Kernel, tried: Configuration, elapsed_ms: float) -> None:
        if options.out:
            row = {"case": case.id, "kernel": kernel, "elapsed_ms": elapsed_ms, **asdict(tried)}
            with (options.out / "tried.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    for case in cases(options.rehearse):
        for entry, tile, best_ms in tuned_for(case, device, capability, options.sizes, done, note):
            done.add(entry)  # causal and full are one entry: the first, causal, decides
            sys.stdout.write(f"{entry}: {best_ms:.3f} ms, {tile}\n")
            sys.stdout.flush()
            for place, entries in kept.items():
                entries[entry] = asdict(tile)
                place.write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
