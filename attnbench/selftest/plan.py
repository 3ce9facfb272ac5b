"""Which parts does a self-test have, and is what they found good enough?

A part is one dtype, one kind and a few seeds, so that parts can run side by side and a lost one costs little.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from attnbench.selftest.counts import DTYPES, Part
from attnbench.selftest.criteria import OURS
from attnbench.selftest.diagnosis import diagnose_mutants
from attnbench.selftest.kills import catalogue, kill_mutants, try_right_ones
from attnbench.selftest.trials import TRIALS, Trial

MISSES_ALLOWED = 2 / 122  # the promise: at least 120 of 122 kills in each dtype
FALSE_ALARMS_ALLOWED = 1 / 1000
# Seeds up to 99 were looked at while the judge was made; these were not.
FRESH_SEEDS = (101, 102, 103, 104, 105)
# In the small form: trials that between them kill every mutant (a greedy cover of the full form's table).
SMALL_MUTANTS = (
    "more queries than keys",
    "huge unseen keys",
    "sink and empty rows",
    "window",
    "T5 bias",
    "caller's scale",
    "huge negative scores",
    "explicit and causal",
    "documents with slack",
    "documents by batch row",
    "block-sparse by head",
    "global tokens and window",
    "heads equal to length",
    "ALiBi of 6 heads",
    "padding and causal",
    "large scores, causal",
    "positive",
    "massive sink key",
    "larger value dim",
    "bias by batch and head",
    "bias of keys",
    "prefix",
    "dilated",
    "top-left",
    "decode",
    "long, sign-flipped V",
    "long, sign-flipped dO",
    "20,000 keys, sign-flipped V",
    "33,000 keys",
    "batch over 65,535",
)
# In the small form: trials that between them hold every mask, score change, layout and distribution's worst.
SMALL_RIGHT = 12
DIAGNOSED = "bf16"  # the dtype in which causes are named: the hardest, since its noise hides the most
SMALL_DIAGNOSES = 12  # in the small form every twelfth mutant of the catalogue is diagnosed
RIGHT_CAUSES = 0.8  # the promise: on that share of the mutants the right cause is among the first two named


@dataclass(frozen=True)
class Job:
    """One part: `kind` is "mutants", "right" or "diagnosis"; `trials` are names; `every`: mutants meet all trials.

    `mutants` names those of a diagnosis; empty: all of the dtype.
    """

    kind: str
    dtype: str
    trials: tuple[str, ...]
    seeds: tuple[int, ...]
    every: bool = False
    quick: bool = False
    mutants: tuple[str, ...] = ()


def full_plan() -> list[Job]:
    """All mutants in each dtype; right implementations on every trial with five fresh seeds, on long ones with one."""
    short = tuple(t.name for t in TRIALS if not t.is_long)
    long = tuple(t.name for t in TRIALS if t.is_long)
    everything = tuple(t.name for t in TRIALS)
    jobs = [Job("right", dtype, long, FRESH_SEEDS[:1]) for dtype in DTYPES]
    jobs += [Job("mutants", dtype, everything, (0,), every=dtype == "bf16") for dtype in DTYPES]
    jobs += [Job("diagnosis", DIAGNOSED, everything, (0,))]
    jobs += [Job("right", dtype, short, (seed,)) for seed in FRESH_SEEDS for dtype in DTYPES]
    return jobs


def small_plan() -> list[Job]:
    """A few minutes: the mutants of one dtype on the trials that kill most, and a sample of the right answers."""
    short = tuple(t.name for t in TRIALS if not t.is_long)
    jobs = [Job("mutants", "bf16", SMALL_MUTANTS, (0,), quick=True)]
    # Every n-th trial, another start in each dtype: together they are all seen once or more.
    every_nth = -(-len(short) // SMALL_RIGHT)
    every_twelfth = tuple(m.name for m in catalogue(DIAGNOSED))[::SMALL_DIAGNOSES]
    jobs += [Job("diagnosis", DIAGNOSED, short, (0,), mutants=every_twelfth)]
    jobs += [
        Job("right", dtype, short[start::every_nth], FRESH_SEEDS[:1]) for start, dtype in enumerate(DTYPES)
    ]
    return jobs


def run_job(job: Job, on_event: Callable[[str], None] = lambda text: None) -> Part:
    """Do one part."""
    trials: Sequence[Trial] = [t for t in TRIALS if t.name in job.trials]
    if job.kind == "diagnosis":
        asked = [m for m in catalogue(job.dtype) if not job.mutants or m.name in job.mutants]
        found = diagnose_mutants(job.dtype, asked, trials, seed=job.seeds[0], on_event=on_event)
        return Part(diagnoses={job.dtype: found})
    if job.kind == "mutants":
        return kill_mutants(
            job.dtype, trials, seed=job.seeds[0], every=job.every, quick=job.quick, on_event=on_event
        )
    return try_right_ones(job.dtype, trials, seeds=job.seeds, on_event=on_event)


def broken_promises(part: Part) -> list[str]:
    """Where the judge did worse than promised, in sentences; empty where it did as well."""
    found = []
    for (criterion, dtype, direction), count in sorted(part.kills.items()):
        missed = len(count.asked) - len(count.alarms)
        if criterion == OURS and direction == "fwd_bwd" and missed > MISSES_ALLOWED * len(count.asked):
            names = ", ".join(sorted(count.asked - count.alarms))
            found.append(f"{dtype}: {missed} of {len(count.asked)} mutants are not found: {names}")
    ours = [(key, c) for key, c in part.false_alarms.items() if key[0] == OURS and key[2] == "fwd_bwd"]
    alarms = {f"{key[1]} | {name}" for key, count in ours for name in count.alarms}
    asked = sum(len(count.asked) for _, count in ours)
    # One alarm among few verdicts says nothing about one in a thousand.
    if len(alarms) > max(1, FALSE_ALARMS_ALLOWED * asked):
        found.append(
            f"{len(alarms)} false alarms in {asked} verdicts on right answers: {'; '.join(sorted(alarms)[:5])}"
        )
    for dtype, named in part.diagnoses.items():
        right = sum(d.is_right for d in named)
        if right < RIGHT_CAUSES * len(named):
            found.append(
                f"{dtype}: the right cause is among the first two for {right} of {len(named)} mutants only"
            )
    return found


def _one_thread() -> None:
    import torch

    # Small products gain nothing from a second thread, and two processes share the cores already.
    torch.set_num_threads(1)


def run_parts(plan: Sequence[Job], jobs: int, say: Callable[[str], None]) -> Part:
    """The sum of all parts; `say` hears of each part that ends. When interrupted, those under way are ended too."""
    found = Part()
    workers = min(jobs or os.cpu_count() or 1, len(plan))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        try:
            running = {pool.submit(run_job, job): job for job in plan}
            for number, done in enumerate(as_completed(running), 1):
                job = running[done]
                found.add(done.result())
                say(f"{number} of {len(plan)}: {job.kind}, {job.dtype}, {len(job.trials)} trials")
        except BaseException:
            # A pool that is left waits for its whole plan otherwise: a quarter of an hour after SIGTERM.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return found
