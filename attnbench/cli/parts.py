"""How are the parts of a self-test run side by side? One process each, one thread each, added up as they end."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from attnbench.selftest.counts import Part
from attnbench.selftest.plan import Job, run_job


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
