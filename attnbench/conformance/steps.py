"""What a check does now: told before and after each step, ended in time, and not done twice by a second process.

A step is one check on one case, or a question whether a case is taken; in it the backend is called once or often. A
process that dies takes one call with it: the next one gets what was done and which calls end a process, repeats no
step that is done, and counts each such call as crashed.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from attnbench.conformance.outcome import OK, WRONG, CheckOutcome
from attnbench.problem import Case

CRASHED_WORDS = "crashed: "
Record = dict[str, Any]  # JSON values


class Failed(Exception):
    """The backend gave no output for a case that it had not refused; the message says what."""


class Crashed(Failed):
    """This call ended a process, or never came back."""


class Stopped(BaseException):
    """The check ends here, by its time limit; no `except Exception` of a backend or a check holds it up."""


@dataclass(frozen=True, kw_only=True)
class CheckProgress:
    """What a check does next. `case_id` is empty for a property, which draws its own; `seconds` are since the start."""

    check: str
    dtype: str
    case_id: str
    passed: int
    failed: int
    seconds: float


@dataclass
class Steps:
    """The steps of one check.

    `on_step` is told each step before it is done. `time_limit_s` ends the check at the next step or call with Stopped.
    `done` has the records of an earlier process by step, `crashed` the calls that ended one, with how: neither is done
    again. `on_done` gets each new record, `on_call` each call of the backend before it starts, and None after it.
    `explaining_s` counts the seconds spent on explanations of failures.
    """

    on_step: Callable[[CheckProgress], None] | None = None
    time_limit_s: float | None = None
    done: dict[str, Record] = field(default_factory=dict)
    crashed: dict[str, Record] = field(default_factory=dict)
    on_done: Callable[[str, Record], None] | None = None
    on_call: Callable[[Record | None], None] | None = None
    started: float = field(default_factory=time.monotonic)
    explaining_s: float = 0.0
    _times: Counter[str] = field(default_factory=Counter)
    _step: str = ""
    _call: Record | None = None

    def once(self, step: str, work: Callable[[], Record]) -> Record:
        """The record of a step: known, or made by `work` now."""
        step = f"{self._step}{step}; "
        self._times[step] += 1
        step += f"{self._times[step]} " if self._times[step] > 1 else ""  # a case may be asked for again
        if step in self.done:
            return self.done[step]
        self.stop_in_time()
        outer, self._step = self._step, step
        try:
            record = work()
        finally:
            self._step = outer
        # A step that found nothing may have left something for later ones: it is done again.
        if self.on_done is not None and record.pop("is_done", True):
            self.on_done(step, record)
        return record

    @contextmanager
    def call(self, case: Case, distribution: str, what: str = "") -> Iterator[None]:
        """Around each call of the backend; raises Crashed if the call ended an earlier process."""
        self.stop_in_time()
        key = f"{self._step}{what} calls {case.id} {distribution}"
        if key in self.crashed:
            raise Crashed(self.crashed[key]["words"])
        outer, self._call = self._call, {"key": key, "case": case.to_json(), "distribution": distribution}
        if self.on_call is not None:
            self.on_call(self._call)
        try:
            yield
        finally:
            self._call = outer
            if self.on_call is not None:
                self.on_call(outer)

    def tell(self, check: str, dtype: str, case: Case | None, outcomes: Iterable[CheckOutcome]) -> None:
        """Say that this check is next, after these outcomes."""
        if self.on_step is not None:
            count = Counter(outcome.status for outcome in outcomes)
            self.on_step(
                CheckProgress(
                    check=check,
                    dtype=dtype,
                    case_id="" if case is None else case.id,
                    passed=count[OK],
                    failed=count[WRONG],
                    seconds=time.monotonic() - self.started,
                )
            )

    def stop_in_time(self) -> None:
        """Raises Stopped if the time is over."""
        if self.time_limit_s is not None and time.monotonic() - self.started >= self.time_limit_s:
            raise Stopped("the time limit")
