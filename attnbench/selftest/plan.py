"""The jobs of a self-test, full or small, and the rates that the judge must reach on them.

A job is one kind, one dtype and a few seeds: jobs run side by side, and a lost one costs little.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass

from attnbench.selftest.check_rates import FAMILIES, check_mutants, check_right_ones
from attnbench.selftest.counts import ALL_CASES, DTYPE_ORDER, Count, Tally
from attnbench.selftest.criteria import OURS
from attnbench.selftest.diagnosis import diagnose_mutants
from attnbench.selftest.kills import catalogue, kill_mutants, try_right_ones
from attnbench.selftest.mutants.right import RIGHT
from attnbench.selftest.trials import TRIALS, Trial

MAX_MISS_RATE = 2 / 122  # at least 120 of 122 mutants are killed in each dtype
MIN_CHECK_RATE = 0.98  # of the mutants that live in a family, or of all, found by `check` at standard
MAX_FALSE_ALARM_RATE = 1 / 1000
MIN_CAUSE_RATE = 0.8  # of the mutants, with the right cause among the first two named
# The judge was developed on seeds up to 99; these are unseen.
FRESH_SEEDS = (101, 102, 103, 104, 105)
CHECK_SEEDS = (0, 101)  # of the right implementations; 0 is the default of `check`
# Trials of the small form that together kill every mutant (a greedy cover of the full form's table).
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
SMALL_RIGHT = 12  # short trials per dtype that right implementations meet in the small form
# Mutants that `check` finds in its first rows, and right implementations, of the small form.
SMALL_CHECKED = (
    "causal strict",
    "GQA head 0",
    "no scale",
    "maximum started at 0",
    "tail tile unmasked",
    "v_dim assumed head_dim",
    "dq without scale",
)
SMALL_CHECKED_RIGHT = ("tiled 128x64", "plain in float32")
DIAGNOSIS_DTYPE = "bf16"  # the hardest, since its noise hides the most
SMALL_DIAGNOSES = 12  # the small form diagnoses every twelfth mutant of the catalogue


@dataclass(frozen=True)
class Job:
    """One unit of work: `kind` is "mutants", "right", "diagnosis", "check" or "check right"; `trials` are names.

    `every`: mutants meet all trials. `mutants` names those to diagnose or check ("check right": the right
    implementations); empty: all of the dtype. `level` and `family` are those of a check.
    """

    kind: str
    dtype: str
    trials: tuple[str, ...]
    seeds: tuple[int, ...]
    every: bool = False
    quick: bool = False
    mutants: tuple[str, ...] = ()
    level: str = ""
    family: str = ALL_CASES

    def __str__(self) -> str:
        what = f"{self.family}, {self.level}" if self.level else f"{len(self.trials)} trials"
        return f"{self.kind}, {self.dtype}, {what}"


def full_plan() -> list[Job]:
    """All mutants in each dtype; right implementations on every trial with five fresh seeds, on long ones with one."""
    short = tuple(t.name for t in TRIALS if not t.is_long)
    long = tuple(t.name for t in TRIALS if t.is_long)
    everything = tuple(t.name for t in TRIALS)
    jobs = [Job("check", dtype, (), (0,), level="standard") for dtype in DTYPE_ORDER]
    jobs += [Job("check", DIAGNOSIS_DTYPE, (), (0,), level="standard", family=family) for family in FAMILIES]
    jobs += [Job("check right", dtype, (), CHECK_SEEDS, level="standard") for dtype in DTYPE_ORDER]
    jobs += [
        Job(kind, dtype, (), (0,), level="smoke")
        for kind in ("check", "check right")
        for dtype in DTYPE_ORDER
    ]
    jobs += [Job("right", dtype, long, FRESH_SEEDS[:1]) for dtype in DTYPE_ORDER]
    jobs += [Job("mutants", dtype, everything, (0,), every=dtype == "bf16") for dtype in DTYPE_ORDER]
    jobs += [Job("diagnosis", DIAGNOSIS_DTYPE, everything, (0,))]
    jobs += [Job("right", dtype, short, (seed,)) for seed in FRESH_SEEDS for dtype in DTYPE_ORDER]
    return jobs


def small_plan() -> list[Job]:
    """A few minutes: the mutants of one dtype on the trials that kill most, and a sample of the right answers."""
    short = tuple(t.name for t in TRIALS if not t.is_long)
    jobs = [Job("mutants", "bf16", SMALL_MUTANTS, (0,), quick=True)]
    # Every n-th trial, with another start in each dtype.
    every_nth = -(-len(short) // SMALL_RIGHT)
    every_twelfth = tuple(m.name for m in catalogue(DIAGNOSIS_DTYPE))[::SMALL_DIAGNOSES]
    jobs += [Job("diagnosis", DIAGNOSIS_DTYPE, short, (0,), mutants=every_twelfth)]
    jobs += [
        Job("right", dtype, short[start::every_nth], FRESH_SEEDS[:1])
        for start, dtype in enumerate(DTYPE_ORDER)
    ]
    jobs += [Job("check", "bf16", (), (0,), level="standard", mutants=SMALL_CHECKED)]
    jobs += [Job("check right", "bf16", (), (0,), level="smoke", mutants=SMALL_CHECKED_RIGHT)]
    return jobs


def run_job(job: Job, on_event: Callable[[str], None] = lambda text: None) -> Tally:
    """Run one job."""
    trials: Sequence[Trial] = [t for t in TRIALS if t.name in job.trials]
    if job.kind == "diagnosis":
        mutants = [m for m in catalogue(job.dtype) if not job.mutants or m.name in job.mutants]
        diagnoses = diagnose_mutants(job.dtype, mutants, trials, seed=job.seeds[0], on_event=on_event)
        return Tally(diagnoses={job.dtype: diagnoses})
    if job.kind == "check":
        mutants = [m for m in catalogue(job.dtype) if not job.mutants or m.name in job.mutants]
        return check_mutants(job.dtype, job.level, family=job.family, mutants=mutants, on_event=on_event)
    if job.kind == "check right":
        rights = [right for right in RIGHT if not job.mutants or right.name in job.mutants]
        return check_right_ones(job.dtype, job.level, seeds=job.seeds, rights=rights, on_event=on_event)
    if job.kind == "mutants":
        return kill_mutants(
            job.dtype, trials, seed=job.seeds[0], every=job.every, quick=job.quick, on_event=on_event
        )
    return try_right_ones(job.dtype, trials, seeds=job.seeds, on_event=on_event)


def missed_targets(tally: Tally) -> list[str]:
    """The target rates that the judge does not reach, in sentences; empty if it reaches all."""
    missed = []
    for (criterion, dtype, direction), count in sorted(tally.kills.items()):
        alive = count.tried - count.alarms
        if criterion == OURS and direction == "fwd_bwd" and len(alive) > MAX_MISS_RATE * len(count.tried):
            names = ", ".join(sorted(alive))
            missed.append(f"{dtype}: {len(alive)} of {len(count.tried)} mutants are not killed: {names}")
    for (cases, level, dtype), count in tally.checks.items():
        alive = count.tried - count.alarms
        if level == "standard" and len(alive) > max(1, (1 - MIN_CHECK_RATE) * len(count.tried)):
            names = ", ".join(sorted(alive))
            missed.append(
                f"check, {cases}, {dtype}: {len(alive)} of {len(count.tried)} mutants are not found: {names}"
            )
    ours = [(key, c) for key, c in tally.false_alarms.items() if key[0] == OURS and key[2] == "fwd_bwd"]
    missed += _too_many_alarms(
        "right answers", {f"{key[1]} | {n}" for key, c in ours for n in c.alarms}, ours
    )
    checks = list(tally.check_alarms.items())
    alarms = {f"{', '.join(key)} | {name}" for key, count in checks for name in count.alarms}
    missed += _too_many_alarms("right implementations that `check` was run on", alarms, checks)
    for dtype, diagnoses in tally.diagnoses.items():
        right = sum(d.is_right for d in diagnoses)
        if right < MIN_CAUSE_RATE * len(diagnoses):
            missed.append(
                f"{dtype}: the right cause is among the first two for only {right} of {len(diagnoses)} mutants"
            )
    return missed


def _too_many_alarms(what: str, alarms: set[str], counts: Sequence[tuple[object, Count]]) -> list[str]:
    verdicts = sum(len(count.tried) for _, count in counts)
    # One alarm in few verdicts says nothing about one in a thousand.
    if len(alarms) <= max(1, MAX_FALSE_ALARM_RATE * verdicts):
        return []
    return [f"{len(alarms)} false alarms in {verdicts} verdicts on {what}: {'; '.join(sorted(alarms)[:5])}"]


def _one_thread() -> None:
    import torch

    # Small products gain nothing from a second thread, and two processes share the cores already.
    torch.set_num_threads(1)


def run_jobs(plan: Sequence[Job], processes: int, on_event: Callable[[str], None]) -> Tally:
    """The sum of all jobs' tallies; `on_event` gets a line per finished job. An interrupt ends running jobs too."""
    tally = Tally()
    workers = min(processes or os.cpu_count() or 1, len(plan))
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_one_thread) as pool:
        try:
            running = {pool.submit(run_job, job): job for job in plan}
            for number, done in enumerate(as_completed(running), 1):
                job = running[done]
                tally.add(done.result())
                on_event(f"{number} of {len(plan)}: {job}")
        except BaseException:
            # Otherwise the pool finishes its whole plan first: a quarter of an hour after SIGTERM.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    return tally
