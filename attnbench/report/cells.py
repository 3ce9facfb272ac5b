"""Cells of tables: figures with units that are easy to read, foreign texts that execute nothing."""

from __future__ import annotations

import math
import re
import unicodedata
from typing import Any

import pandas as pd

LONGEST_CELL = 300  # characters of a foreign text that are shown
NOTHING = "-"
STARTS_A_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")
MARKDOWN_MEANS = re.compile(r"([\\`*_{}\[\]<>()#+!|~&@$])")
# What GitHub reads after the Markdown, when no backslash is left: mentions, references, addresses. A zero-width
# space, or a sign written as an entity, takes away their meaning and keeps their look.
READ_LATER = {
    "\\<": "&lt;",
    "\\>": "&gt;",
    "\\@": "&#64;&#8203;",
    "\\#": "&#35;&#8203;",
    "://": "&#58;//",
    "www.": "www&#46;",
}


def clean(text: Any, longest: int = LONGEST_CELL) -> str:
    """A foreign text in one line: without control, format and bidi characters, and cut if too long.

    Cut before it is read, so that megabytes cost nothing.
    """
    whole = str(text)
    head = whole[: 2 * longest]
    # Cc: control (escape sequences of terminals), Cf: bidi overrides, Cs and Co: cannot be printed everywhere.
    kept = "".join(
        " " if char in "\n\r\t\v\f\x85\u2028\u2029" else char
        for char in head
        if char in "\n\r\t\v\f\x85\u2028\u2029" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co")
    )
    line = " ".join(kept.split())
    if len(line) > longest or len(whole) > len(head):
        return f"{line[: longest - 1].rstrip()}… ({len(whole):,} characters)"
    return line


def csv_cell(text: Any) -> str:
    """A text that no spreadsheet takes for a formula (a leading quote mark makes it a text)."""
    line = clean(text)
    return f"'{line}" if line.lstrip().startswith(STARTS_A_FORMULA) else line


def markdown_cell(text: Any) -> str:
    """A text as it is in a Markdown table: no markup, no HTML, no mention, no link, no new column."""
    cell = MARKDOWN_MEANS.sub(r"\\\1", clean(text))
    for sign, harmless in READ_LATER.items():
        cell = cell.replace(sign, harmless)
    return cell


def is_missing(value: Any) -> bool:
    """Whether a figure is missing (None, NA or NaN)."""
    return bool(pd.isna(value))


def milliseconds(value: Any) -> str:
    """`820 us`, `1.23 ms`, `12.3 ms`, `4.56 s`; three digits."""
    if is_missing(value):
        return NOTHING
    for unit, size in (("us", 1e-3), ("ms", 1.0), ("s", 1e3)):
        if float(value) < 999.5 * size or unit == "s":
            return f"{three_digits(float(value) / size)} {unit}"
    raise AssertionError("unreachable")


def bytes_text(value: Any) -> str:
    """`2.03 MiB`; three digits, powers of 1024."""
    if is_missing(value):
        return NOTHING
    size = float(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 999.5 or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{three_digits(size)} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def three_digits(value: Any) -> str:
    """A figure to three significant digits, plain between 0.001 and 100,000."""
    if is_missing(value):
        return NOTHING
    number = float(value)
    if number == 0 or not math.isfinite(number):
        return f"{number:g}"
    if not 1e-3 <= abs(number) < 1e5:
        return f"{number:.1e}"
    if abs(number) < 999.5:
        number = float(f"{number:.2e}")  # 9.999 is 10.0, not 10.00
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:.{digits}f}"


def factor(value: Any) -> str:
    """`1.23x`."""
    return NOTHING if is_missing(value) else f"{three_digits(value)}x"


def percent(value: Any) -> str:
    """`42 %`."""
    if is_missing(value):
        return NOTHING
    share = 100 * float(value)
    return f"{share:.1f} %" if share < 9.95 else f"{share:.0f} %"
