"""The progress of a sweep: a bar with an ETA on a terminal, elsewhere only notices and failures."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from attnbench.cli.console import err, plural, remark
from attnbench.statuses import BROKEN
from attnbench.sweep import events


class Progress:
    """Shows a sweep's events on stderr. After Ctrl-C it says how to go on with `folder`."""

    def __init__(self, quiet: bool = False, folder: Path | None = None) -> None:
        from rich import progress

        console = err()
        self._folder = folder
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

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        self._bar.stop()
        if error is KeyboardInterrupt and self._folder is not None:
            kept = plural(self.already_done + self.rows_done, "result")
            remark(f"\n{kept} in {self._folder}; go on with --out {self._folder} --resume")

    def __call__(self, event: events.Event) -> None:
        match event:
            case events.SweepStarted():
                self.rows, self.already_done = event.rows, event.already_done
                self._bar.update(self._task, total=event.rows)
                if event.already_done:
                    remark(f"{event.already_done} results exist; {event.rows} are missing")
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
                    result = event.result
                    self._say(f"{result.status}: {result.backend} {result.case_id}: {result.reason}")
            case events.Notice():
                self._say(event.text)

    def _say(self, text: str) -> None:
        from rich.text import Text

        self._bar.console.print(Text(_inert(text, 400)))


def _inert(text: str, longest: int = 90) -> str:
    return "".join(char if char.isprintable() else " " for char in text[:longest])
