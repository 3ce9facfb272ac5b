"""The one table of statuses: how a case on a backend can end, and how a reader sees each ending.

To add a status, add an entry to STATUS_TABLE: every list, order and colour follows from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class Status:
    """One status. The table below holds them in the order of every report: answers, failures, then the rest.

    word          what the record says; `meaning` in a few words
    kind          "answer": it was judged; "broken": no answer where one was due; "declined": none was due
    is_strict     `attnbench run --strict` exits 1 on it
    is_passing    it may end otherwise another time: `attnbench run --resume` runs such a row again
    is_of_models  a run of a model suite can end so (models run in the caller's process: no worker dies there)
    colour, glyph of charts: the glyph is a second code beside the colour
    style         of a terminal
    """

    word: str
    meaning: str
    kind: Literal["answer", "broken", "declined"]
    colour: str
    glyph: str
    style: str
    is_strict: bool = False
    is_passing: bool = False
    is_of_models: bool = True


STATUS_TABLE = (
    Status(
        word="ok",
        meaning="the answer is right",
        kind="answer",
        colour="#2C8C6B",
        glyph="✓",
        style="green",
    ),
    Status(
        word="wrong",
        meaning="an error exceeds its budget, or an input was changed",
        kind="answer",
        colour="#B2182B",
        glyph="✗",
        style="bold red",
        is_strict=True,
    ),
    Status(
        word="crashed",
        meaning="the worker died",
        kind="broken",
        colour="#D6604D",
        glyph="crash",
        style="red",
        is_passing=True,
        is_strict=True,
        is_of_models=False,
    ),
    Status(
        word="error",
        meaning="the backend raised an exception",
        kind="broken",
        colour="#E58E6C",
        glyph="error",
        style="red",
        is_passing=True,
        is_strict=True,
    ),
    Status(
        word="timeout",
        meaning="no answer in the time allowed",
        kind="broken",
        colour="#8E6BB5",
        glyph="time",
        style="magenta",
        is_passing=True,
    ),
    Status(
        word="oom",
        meaning="memory ran out",
        kind="broken",
        colour="#B79AD3",
        glyph="oom",
        style="magenta",
        is_of_models=False,
    ),
    Status(
        word="refused",
        meaning="the backend says that it does not take this case",
        kind="declined",
        colour="#DCC27A",
        glyph="–",
        style="yellow",
    ),
    Status(
        word="unavailable",
        meaning="the backend cannot run on this machine",
        kind="declined",
        colour="#E3E6E9",
        glyph="·",
        style="bright_black",
        is_passing=True,
    ),
)
STATUS = {status.word: status for status in STATUS_TABLE}
STATUSES = tuple(STATUS)
BROKEN = tuple(status.word for status in STATUS_TABLE if status.kind == "broken")
PASSING = frozenset(status.word for status in STATUS_TABLE if status.is_passing)
DECLINED = tuple(status.word for status in STATUS_TABLE if status.kind == "declined")
