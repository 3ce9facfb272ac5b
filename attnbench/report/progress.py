"""The progress of a sweep: a line that says what is done now and how long the rest takes; failures stay."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any, Protocol

from attnbench.statuses import BROKEN
from attnbench.sweep import events

FIRST_GUESS = 0.02  # of the sweep is done before the rest is guessed from it
NOTEBOOK_EVERY_S = 0.5


class Course:
    """Where a sweep is, from its events."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.rows_done = self.rows = self.already_done = 0
        self.doing = "starting"
        self.share = 0.0  # of the whole sweep
        self._began = time.monotonic()
        self._case, self._index, self._cases = "", 0, 1
        self._measured_from: float | None = None  # the end of loading and compiling

    def follow(self, event: events.Event) -> str:
        """Take an event in; what must stay readable is returned, else an empty text."""
        match event:
            case events.SweepStarted():
                self.rows, self.already_done = event.rows, event.already_done
                self._measured_from = time.monotonic()
                if event.already_done:
                    return f"{event.already_done} results exist; {event.rows} are missing"
            case events.CaseStarted():
                self._case, self._index, self._cases = event.case_id, event.index, event.cases
                self.share = (self._index - 1) / self._cases
            case events.Doing():
                self.doing = event.text
                if self._index:
                    self.share = (self._index - 1 + event.share) / self._cases
            case events.Judged():
                if event.status == "wrong":
                    return f"wrong: {event.backend} {event.case_id}: {event.reason}"
            case events.Finished():
                self.rows_done = event.rows_done
                self.counts[event.result.status] += 1
                if event.result.status in BROKEN:
                    result = event.result
                    return f"{result.status}: {result.backend} {result.case_id}: {result.reason}"
            case events.Notice():
                return event.text
        return ""

    @property
    def left(self) -> str:
        """`about 1:20 left`, at the pace so far; empty while that is unknown."""
        if self.share < FIRST_GUESS or self._measured_from is None:
            return ""
        seconds = (time.monotonic() - self._measured_from) * (1 - self.share) / self.share
        return f"about {int(seconds) // 60}:{int(seconds) % 60:02} left"

    @property
    def line(self) -> str:
        """`case 3 of 18, about 1:20 left: judging flex (q128-...)`."""
        place = f"case {self._index} of {self._cases}" if self._index else ""
        before = ", ".join(part for part in (place, self.left) if part)
        now = f"{self.doing} ({self._case})" if self._case else self.doing
        return inert(f"{before}: {now}" if before else now, 140)


class Shows(Protocol):
    """Shows a sweep; a context manager that takes its events."""

    def __enter__(self) -> Shows: ...

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None: ...

    def __call__(self, event: events.Event) -> None: ...


class Progress:
    """A bar and the line on stderr, if that is a terminal; elsewhere only what must stay readable.

    After Ctrl-C it says how to go on with `folder`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        from rich import progress
        from rich.console import Console
        from rich.table import Column

        self.course = Course()
        self._folder = folder
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=12),
            progress.TimeElapsedColumn(),
            progress.TextColumn(
                "{task.description}", markup=False, table_column=Column(ratio=1, no_wrap=True)
            ),
            expand=True,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            refresh_per_second=2,  # each refresh runs beside what is timed
        )
        self._task = self._bar.add_task(self.course.line, total=1.0)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._bar.stop()
        if error is KeyboardInterrupt and self._folder is not None:
            kept = self.course.already_done + self.course.rows_done
            results = f"{kept} result{'' if kept == 1 else 's'}"
            self._say(f"\n{results} in {self._folder}; go on with --out {self._folder} --resume")

    def __call__(self, event: events.Event) -> None:
        if text := self.course.follow(event):
            self._say(text)
        self._bar.update(self._task, completed=self.course.share, description=self.course.line)

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text("\n".join(inert(line, 400) for line in text.split("\n"))))


class NotebookProgress:
    """The line in a notebook's output, replaced as the sweep goes on; failures stay below it."""

    def __init__(self) -> None:
        from IPython.display import display

        self.course = Course()
        self._kept: list[str] = []
        self._shown_at = 0.0
        self._handle = display({"text/plain": self.course.line}, raw=True, display_id=True)

    def __enter__(self) -> NotebookProgress:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._show(f"{self.course.rows_done} results" + (", stopped" if error else ""))

    def __call__(self, event: events.Event) -> None:
        if text := self.course.follow(event):
            self._kept.append(inert(text, 400))
        if time.monotonic() - self._shown_at >= NOTEBOOK_EVERY_S:
            self._show(self.course.line)

    def _show(self, line: str) -> None:
        self._shown_at = time.monotonic()
        self._handle.update({"text/plain": "\n".join([line, *self._kept])}, raw=True)


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None: ...

    def __call__(self, event: events.Event) -> None: ...


def progress_here() -> Shows:
    """The progress that suits the caller: in a notebook its line, on a terminal the bar, else nothing."""
    if in_notebook():
        return NotebookProgress()
    return Progress() if sys.stderr.isatty() else Silent()


def in_notebook() -> bool:
    """Whether the caller is a cell of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def inert(text: str, longest: int = 90) -> str:
    """Foreign text without control characters, cut to a line."""
    return "".join(char if char.isprintable() else " " for char in text[:longest])
