"""The one table of columns: each with its name, its type, how it follows from a result and how tables show it.

To add a column, add a line to COLUMNS. With a `title` it also stands in the terminal, in Markdown and on the page.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

from attnbench.report.cells import bytes_text, factor, milliseconds, percent, three_digits
from attnbench.report.figures import Figures

Kind = Literal["text", "whole", "real", "samples", "json", "texts"]
DTYPES: dict[Kind, str] = {"text": "str", "whole": "Int64", "real": "float64", "texts": "object"}
CELLS: dict[str, Callable[[Any], str]] = {
    "": three_digits,
    "ms": milliseconds,
    "bytes": bytes_text,
    "times": factor,
    "share": percent,
}


@dataclass(frozen=True)
class Column:
    """One column of the frame.

    kind   "text", "whole" or "real", NA if missing; "samples" (rounds of milliseconds), "json" or "texts"
    value  the dotted path of an attribute of Figures, or a function of Figures
    unit   a key of CELLS: how a table shows the value
    title  the heading in tables (of numbers only); a column without one is in the frame and its files only
    """

    name: str
    kind: Kind
    value: str | Callable[[Figures], Any]
    unit: str = ""
    title: str = ""

    def __post_init__(self) -> None:
        if self.title and self.kind not in ("whole", "real"):
            raise ValueError(f"column {self.name} holds no numbers: tables cannot show it as {self.title!r}")

    def of(self, figures: Figures) -> Any:
        """The value for one result."""
        value = attrgetter(self.value)(figures) if isinstance(self.value, str) else self.value(figures)
        return encodable(value) if self.kind == "text" and value is not None else value

    def cell(self, row: Any) -> str:
        """The text that a table shows for a row of the frame."""
        return CELLS[self.unit](getattr(row, self.name))


def encodable(text: Any) -> str:
    """The text as a file can hold it: JSON may carry half of a surrogate pair, which UTF-8 cannot."""
    return str(text).encode("utf-8", "replace").decode("utf-8")


def _of_result(name: str, kind: Kind, unit: str = "", title: str = "") -> Column:
    return Column(name, kind, f"result.{name}", unit, title)


def _of_case(name: str, kind: Kind) -> Column:
    return Column(name, kind, lambda figures: figures.result.case.get(name))


def _of_case_or(name: str, default: str) -> Column:
    """A size of the case that is that of the field `default` unless it is set."""
    return Column(
        name, "whole", lambda figures: figures.result.case.get(name) or figures.result.case.get(default)
    )


def _of_pass(which: str, name: str, kind: Kind, unit: str = "") -> Column:
    return Column(f"{which}_{name}", kind, f"{which}.{name}", unit)


def _of_memory(name: str, field: str) -> Column:
    return Column(name, "whole", lambda figures: figures.result.memory_bytes.get(field), "bytes")


# The order is public: texts, whole numbers, real numbers, then what a spreadsheet cannot hold.
COLUMNS = (
    Column("case", "text", "result.case_id"),
    _of_result("backend", "text"),
    _of_result("backend_version", "text"),
    _of_result("kernel", "text"),
    _of_result("status", "text"),
    _of_result("reason", "text"),
    _of_case("direction", "text"),
    _of_case("mask", "text"),
    Column("scores", "text", lambda figures: ", ".join(map(str, figures.result.case.get("scores") or ()))),
    _of_case("dtype", "text"),
    _of_case("layout", "text"),
    _of_result("suite", "text"),
    _of_result("group", "text"),
    _of_result("contract", "text"),
    _of_result("distribution", "text"),
    _of_result("device", "text"),
    _of_result("machine", "text"),
    _of_result("commit", "text"),
    _of_result("started_at", "text"),
    _of_result("environment", "text"),
    _of_result("clock", "text"),
    _of_case("batch", "whole"),
    _of_case("q_len", "whole"),
    _of_case("k_len", "whole"),
    _of_case("q_heads", "whole"),
    _of_case_or("kv_heads", "q_heads"),
    _of_case("head_dim", "whole"),
    _of_case_or("v_dim", "head_dim"),
    _of_result("pairs", "whole"),
    _of_result("seed", "whole"),
    Column("peak_bytes", "whole", "peak_bytes", "bytes", "peak"),
    _of_memory("fwd_peak_bytes", "fwd_peak"),
    _of_memory("bwd_peak_bytes", "bwd_peak"),
    _of_memory("saved_bytes", "saved"),
    _of_result("least_peak_bytes", "whole", "bytes"),
    _of_pass("fwd", "flops", "whole"),
    _of_pass("bwd", "flops", "whole"),
    _of_pass("fwd", "least_bytes", "whole", "bytes"),
    _of_pass("bwd", "least_bytes", "whole", "bytes"),
    _of_pass("fwd", "samples", "whole"),
    _of_pass("bwd", "samples", "whole"),
    _of_case("scale", "real"),
    _of_pass("fwd", "median_ms", "real", "ms"),
    _of_pass("bwd", "median_ms", "real", "ms"),
    _of_pass("fwd", "low_ms", "real", "ms"),
    _of_pass("fwd", "high_ms", "real", "ms"),
    _of_pass("bwd", "low_ms", "real", "ms"),
    _of_pass("bwd", "high_ms", "real", "ms"),
    _of_pass("fwd", "min_ms", "real", "ms"),
    _of_pass("bwd", "min_ms", "real", "ms"),
    _of_pass("fwd", "tflops", "real"),
    _of_pass("bwd", "tflops", "real"),
    _of_pass("fwd", "roof_share", "real", "share"),
    _of_pass("bwd", "roof_share", "real", "share"),
    Column("roof_share", "real", "roof_share", "share"),
    _of_pass("fwd", "host_ms", "real", "ms"),
    _of_pass("bwd", "host_ms", "real", "ms"),
    _of_pass("fwd", "warm_l2_ms", "real", "ms"),
    _of_pass("bwd", "warm_l2_ms", "real", "ms"),
    _of_pass("fwd", "graph_ms", "real", "ms"),
    _of_pass("bwd", "graph_ms", "real", "ms"),
    Column("peak_over_least", "real", "peak_over_least", "times", "over minimum"),
    _of_result("error_over_budget", "real", title="error/budget"),
    Column("prepare_total_ms", "real", "prepare_total_ms", "ms"),
    _of_pass("fwd", "samples_ms", "samples"),
    _of_pass("bwd", "samples_ms", "samples"),
    Column("prepare_ms", "json", lambda figures: json.dumps(figures.result.prepare_ms)),
    Column("errors", "json", lambda figures: json.dumps(figures.result.errors)),
    Column("notes", "texts", lambda figures: [encodable(note) for note in figures.result.notes]),
)


def titled() -> tuple[Column, ...]:
    """The columns that every table of results shows."""
    return tuple(column for column in COLUMNS if column.title)


def names_of(*kinds: Kind) -> list[str]:
    """The names of the columns of some kinds."""
    return [column.name for column in COLUMNS if column.kind in kinds]
