"""What a check does now, on one line of a terminal that goes when the report comes; nothing elsewhere."""

from __future__ import annotations

from typing import Any

from attnbench.cli.console import err


class CheckLine:
    """The line on stderr; `show` takes a CheckProgress as a dict."""

    def __init__(self) -> None:
        from rich.text import Text

        console = err()
        self._status = console.status(Text("loading"), spinner="dots") if console.is_terminal else None

    def __enter__(self) -> CheckLine:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *_: Any) -> None:
        if self._status is not None:
            self._status.stop()

    def show(self, progress: dict[str, Any]) -> None:
        """What comes next, and how many checks passed and failed so far."""
        from rich.text import Text

        if self._status is not None:
            what = f"{progress['check']} {progress['case_id'] or progress['dtype']}"
            counts = f"{progress['passed']} passed, {progress['failed']} failed, {progress['seconds']:.0f} s"
            self._status.update(Text(f"{counts}; now {what}"[:200]))
