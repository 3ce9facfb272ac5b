"""The parent of `attnbench check`: a crash or a hang of the backend costs one call, and Ctrl-C tells what was found.

The check runs in a second process, which tells each step that is done. If a call ends that process, or takes too long,
another one is started with what is done; it takes that call as crashed and goes on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from attnbench.errors import SIGNALLED, AttnbenchError, BackendUnavailable
from attnbench.sweep.executors import WorkerProcess
from attnbench.sweep.step_errors import StepError

MOST_CRASHES, MOST_HANGS = 8, 3  # then the check ends with what it found
LOADING_S = 600.0  # a file may compile its kernels
GRACE_S = 5.0  # to end by itself, after a signal or the time limit
Fields = dict[str, Any]


class CheckProcess:
    """One check of one backend in processes of its own; `on_next` gets what comes next (a CheckProgress as a dict)."""

    def __init__(self, device: str, timeout_s: float, on_next: Callable[[Fields], None]) -> None:
        self._timeout_s, self._on_next = timeout_s, on_next
        self._process = WorkerProcess(device, bench="attnbench.cli.check_worker:CheckBench")
        self._done: dict[str, str] = {}
        self._crashed: dict[str, Fields] = {}
        self._call: Fields | None = None
        self._running = False
        self._hangs = 0
        self._stopped = ""
        self._is_signalled = False
        self.printed: dict[str, None] = {}

    def check(self, load: Fields, fields: Fields, time_limit_s: float | None) -> Fields:
        """The answer of CheckBench.check. Raises AttnbenchError as the in-process check does."""
        end = None if time_limit_s is None else time.monotonic() + time_limit_s
        with self._signals():
            try:
                while True:
                    was_stopped = self._stopped
                    try:
                        answer = self._answer(load, fields, end)
                    except StepError as error:
                        self._settle(error, was_stopped)
                        continue
                    printed = self._process.printed.splitlines()
                    self.printed |= dict.fromkeys(line for line in printed if line.strip())
                    if "unavailable" in answer:
                        raise BackendUnavailable(answer["unavailable"])
                    if "refused" in answer:
                        raise AttnbenchError(answer["refused"])
                    return answer
            finally:
                self._process.stop()

    def _answer(self, load: Fields, fields: Fields, end: float | None) -> Fields:
        """The answer of one process; raises StepError if it ends without one."""
        self._call, self._running = None, False
        refused = self._process.call("load", timeout_s=LOADING_S, **load)
        if refused:
            return refused
        left_s = None if end is None else max(0.0, end - time.monotonic())
        timer = None
        if left_s is not None and not self._stopped:
            timer = self._kill_later(left_s + GRACE_S, "the time limit")
        try:
            return self._process.call(
                "check",
                on_phase=self._note,
                **fields,
                time_limit_s=left_s,
                done=self._done,
                crashed=self._crashed,
                stopped=self._stopped,
            )
        finally:
            if timer is not None:
                timer.cancel()

    def _settle(self, error: StepError, was_stopped: str) -> None:
        """Count a dead process as a crash of the call that it did last; raises AttnbenchError if it did none."""
        if self._stopped != was_stopped:
            return  # it was ended from here, and the next one tells what is done
        if error.status not in ("crashed", "timeout", "oom") or was_stopped:
            raise AttnbenchError("\n".join([error.reason, *error.notes])) from error
        if self._is_signalled and self._done:
            self._stopped = SIGNALLED
            return
        if self._is_signalled:
            raise KeyboardInterrupt
        if self._call is None:
            raise BackendUnavailable(f"it cannot be loaded: {error.reason}") from error
        words = error.reason.replace(" while in: check", "")
        words = words if self._running else f"after a call returned, {words}"
        self._crashed[self._call["key"]] = self._call | {"words": f"crashed: {words}"}
        self._hangs += error.status == "timeout"
        if self._hangs >= MOST_HANGS:
            self._stopped = f"{MOST_HANGS} calls that did not return"
        elif len(self._crashed) >= MOST_CRASHES:
            self._stopped = f"{MOST_CRASHES} crashes"

    def _note(self, phase: Fields) -> float | None:
        """Take note of what the check tells; the seconds that it may be silent: a call's limit, else none."""
        if "next" in phase:
            self._on_next(phase["next"])
        elif "done" in phase:
            step, record = phase["done"]
            self._done[step] = record
        else:
            self._running = phase["call"] is not None
            self._call = phase["call"] or self._call
        return self._timeout_s if self._running else None

    def _kill_later(self, seconds: float, why: str) -> threading.Timer:
        """End the running process in so many seconds, unless it is gone by then."""
        pid = self._process.pid

        def kill() -> None:
            if pid is not None and pid == self._process.pid:
                self._stopped = self._stopped or why
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

        timer = threading.Timer(seconds, kill)
        timer.daemon = True
        timer.start()
        return timer

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """Inside, a first SIGINT or SIGTERM asks the check for its report, and a second one ends it at once."""

        def handle(number: int, _: Any) -> None:
            if self._is_signalled:
                raise KeyboardInterrupt
            self._is_signalled = True
            pid = self._process.pid
            if pid is None:
                raise KeyboardInterrupt
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)
            self._kill_later(GRACE_S, SIGNALLED)

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
