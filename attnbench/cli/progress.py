"""How is a running sweep shown? One bar with an ETA on a terminal, only what must be known elsewhere."""

from __future__ import annotations

from collections import Counter
from typing import Any

from attnbench.cli.console import err, remark
from attnbench.sweep import events
from attnbench.sweep.result import BROKEN


class Progress:
    """Takes a sweep's events. On a terminal: a bar on stderr; elsewhere only notices and what is wrong or failed."""

    def __init__(self, quiet: bool = False) -> None:
        from rich import progress

        console = err()
        self.counts: Counter[str] = Counter()
        self.rows_done = self.rows = self.already_done = 0
        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.BarColumn(bar_width=30),
            progress.MofNCompleteColumn(),
            progress.TimeElapsedColumn(),
            progress.TextColumn("left"),
            progress.TimeRemainingColumn(),
            progress.TextColumn("{task.fields[doing]}", markup=False),
            console=console,
            transient=True,
            disable=quiet or not console.is_terminal,
            speed_estimate_period=300,
        )
        self._task = self._bar.add_task("sweep", total=None, doing="starting workers")

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._bar.stop()

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.SweepStarted():
                self.rows, self.already_done = event.rows, event.already_done
                self._bar.update(self._task, total=event.rows)
                if event.already_done:
                    remark(f"{event.already_done} results are there already; {event.rows} rows are missing")
            case events.CaseStarted():
                self._bar.update(self._task, doing=_inert(event.case_id))
            case events.Judged():
                if event.status == "wrong":
                    self._say(f"wrong: {event.backend} {event.case_id}: {event.reason}")
            case events.Finished():
                self.rows_done = event.rows_done
                self.counts[event.result.status] += 1
                self._bar.update(self._task, completed=event.rows_done)
                if event.result.status in BROKEN:
                    found = event.result
                    self._say(f"{found.status}: {found.backend} {found.case_id}: {found.reason}")
            case events.Notice():
                self._say(event.text)

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._bar.console.print(Text(_inert(text, 400)))


def _inert(text: str, longest: int = 90) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:longest])
