"""Printing and option values of every command: tables to stdout, remarks to stderr, foreign text inert."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attnbench.errors import AttnbenchError

if TYPE_CHECKING:
    from rich.console import Console

WIDTH_OF_A_FILE = 130
SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([KMGT])(?:i?B)?|B)?", re.IGNORECASE)


def out() -> Console:
    """Stdout; wide if it is no terminal, so that tables in files and logs are not folded at 80 columns."""
    from rich.console import Console

    if sys.stdout.isatty():
        return Console(highlight=False, markup=False, emoji=False)
    return Console(
        highlight=False,
        markup=False,
        emoji=False,
        width=max(WIDTH_OF_A_FILE, shutil.get_terminal_size((0, 0)).columns),
    )


def err() -> Console:
    """Stderr, for progress and remarks."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def complain(message: str) -> None:
    """One red line: what, where, what to do. Foreign text in it is shown, not interpreted."""
    from rich.text import Text

    err().print(Text.assemble(("attnbench: ", "bold red"), (_inert(message), "red")))


def remark(message: str) -> None:
    """One line on stderr."""
    from rich.text import Text

    err().print(Text(_inert(message)))


def say_once(lines: Iterable[str], most: int) -> None:
    """Lines of libraries and backends, each once, on stderr; `most` of them."""
    once = list(dict.fromkeys(lines))
    if not once:
        return
    remark("warnings and output of the backend and its libraries, each line once:")
    for line in once[:most]:
        remark(f"  {line}")
    if len(once) > most:
        remark(f"  and {len(once) - most} more; -v shows all")


def require_backend(name: str) -> None:
    """UnknownBackend or BackendUnavailable, before torch is imported, if the name or path leads to no backend."""
    from attnbench.backend.registry import find_named

    find_named(name)


def _inert(message: str) -> str:
    # Not report.cells.clean, which would import pandas for one line.
    return "".join(char if char == "\n" or char.isprintable() else " " for char in message)[:2000]


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2, allow_nan=False, default=str) + "\n")


def texts(values: Sequence[str] | None) -> list[str] | None:
    """Every item of a list option, repeated or split at commas outside brackets; None if it was not given."""
    from attnbench.problem import split_outside_brackets

    if not values:
        return None
    items = [item for value in values for item in split_outside_brackets(value)]
    if not items:
        raise AttnbenchError(f"no item in {', '.join(values)!r}; give at least one")
    return items


def whole_numbers(values: Sequence[str] | None, option: str) -> list[int] | None:
    """The items of a list option as whole numbers of at least 1; `4k` and `1M` are powers of 1024."""
    items = texts(values)
    return None if items is None else [_whole_number(item, option) for item in items]


def _whole_number(item: str, option: str) -> int:
    match = re.fullmatch(r"(\d+)([kKM]?)", item)
    if not match or int(match.group(1)) < 1:
        raise AttnbenchError(f"{option} takes whole numbers of at least 1 (4096, or 4k), not {item!r}")
    return int(match.group(1)) * {"": 1, "k": 1 << 10, "m": 1 << 20}[match.group(2).lower()]


def size_bytes(text: str | None, option: str) -> int | None:
    """`8GiB`, `500M`, `1073741824`: units are powers of 1024."""
    if text is None:
        return None
    match = SIZE.fullmatch(text.strip())
    size = float(match.group(1)) * 1024 ** " KMGT".index((match.group(2) or " ").upper()) if match else 0
    if size < 1:
        raise AttnbenchError(f"{option} takes a size such as 8GiB or 500MiB, not {text!r}")
    return int(size)


def require_writable(*files: Path | None) -> None:
    """Make the folders of files that are written at the end. AttnbenchError, before any work, if one cannot be."""
    for file in files:
        if file is None:
            continue
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AttnbenchError(f"{file} cannot be written: {error.strerror}; give another path") from error
        if file.is_dir():
            raise AttnbenchError(f"{file} is a folder; give the path of a file")
        if not os.access(file if file.exists() else file.parent, os.W_OK):
            raise AttnbenchError(f"{file} cannot be written: no permission; give another path")


def plural(count: int, one: str, many: str = "") -> str:
    """`1 case`, `2 cases`."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def print_all(renderables: Iterable[Any]) -> None:
    """Print tables and lines to stdout."""
    console = out()
    for one in renderables:
        console.print(one)
