"""The tables show who is right, who is fastest and why others are not; foreign texts are inert."""

from __future__ import annotations

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from attnbench.problem import Causal, Full, SlidingWindow
from attnbench.report import frame
from attnbench.report.cells import (
    bytes_text,
    clean,
    csv_cell,
    factor,
    markdown_cell,
    milliseconds,
    three_digits,
)
from attnbench.report.files import write_csv, write_report
from attnbench.report.labels import with_families
from attnbench.report.markdown import markdown
from attnbench.report.ranking import winners
from attnbench.report.tables import reasons, sections, standings
from attnbench.report.terminal import result_tables

HOSTILE = [
    "<script>alert(1)</script>",
    "=HYPERLINK(\"http://x\")",
    "+1", "-1+2", "@SUM(A1)", "\t=1+1", "\r=1",
    "[bold red]not markup[/bold red]",
    "[link=http://x]x[/link]",
    "\x1b[31mred\x1b]0;title\x07",
    "a|b\nc",
    "\u202egnp.exe",
    "![x](http://x/y.png) **b** `c` @somebody",
    "A" * 3_000_000,
    "",
    "\ud800 lone surrogate",
    "$x^2$",
]  # fmt: skip


def printed(table: Any) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=160, force_terminal=True, color_system="standard")
    for one in result_tables(table):
        console.print(one)
    return stream.getvalue()


def test_the_fastest_right_backend_of_a_case_is_marked(sweep: Any) -> None:
    table = frame(sweep((128,), ("causal",)))
    right = table[table["status"] == "ok"]
    total = right["fwd_median_ms"] + right["bwd_median_ms"]
    section = sections(table)[0]
    assert [(row.backend, row.mark) for row in section.rows if row.mark] == [
        (right["backend"].iloc[total.argmin()], "*")
    ]
    assert [row.backend for row in section.rows if row.status == "ok"] == list(
        right["backend"][total.sort_values().index]
    )
    assert section.left_out == {"unavailable": ("xformers",)}


def test_backends_that_cannot_be_told_apart_are_tied_and_none_is_called_the_winner(
    a_case: Any, a_result: Any
) -> None:
    def marks(**samples_ms: list[float]) -> dict[str, str]:
        results = [a_result(a_case(), name, samples_ms={"fwd": [ms]}) for name, ms in samples_ms.items()]
        return {row.backend: row.mark for row in sections(frame(results))[0].rows}

    assert marks(flex=[1.0, 1.05, 1.1, 1.15, 1.2], naive=[1.1, 1.1, 1.3, 1.4, 1.5], triton=[3.0] * 5) == {
        "flex": "~",
        "naive": "~",
        "triton": "",
    }
    assert marks(flex=[1.0, 1.05, 1.1, 1.15, 1.2], naive=[1.3] * 5) == {"flex": "*", "naive": ""}
    assert marks(flex=[1.0, 1.0, 1.0], naive=[9.0, 9.0, 9.0]) == {"flex": "~", "naive": "~"}  # too few
    assert marks(flex=[1.0, 1.0, 1.0]) == {"flex": "*"}


def test_the_table_and_the_page_put_the_same_backends_at_the_front(a_case: Any, a_result: Any) -> None:
    # Calls that were disturbed: the median of all is lowest for `often`, of each round's least for `seldom`.
    times = {"seldom": [1.0, 5.0, 5.0], "often": [2.0, 2.0, 2.0], "behind": [6.0, 6.0, 6.0]}
    results = [a_result(a_case(), name, samples_ms={"fwd": [ms] * 6}) for name, ms in times.items()]
    table = frame(results)
    (winner,) = winners(with_families(table))
    marked = [(row.backend, row.mark) for row in sections(table)[0].rows]
    assert winner.tied == ("seldom",)
    assert marked == [("seldom", "*"), ("often", ""), ("behind", "")]
    assert {one.backend: one.fastest for one in standings(table)} == {"seldom": 1, "often": 0, "behind": 0}


def test_a_backend_without_its_backward_is_not_the_fastest(a_case: Any, a_result: Any) -> None:
    case = a_case(direction="fwd_bwd")
    half = a_result(case, "flex", samples_ms={"fwd": [[1e-6]]})
    section = sections(frame([half, a_result(case, "naive")]))[0]
    assert [row.backend for row in section.rows if row.mark] == ["naive"]


def test_standings_count_statuses_and_wins(sweep: Any) -> None:
    table = frame(sweep((128, 256), ("full", "causal & window(31, 0)")))
    by_backend = {one.backend: one for one in standings(table)}
    assert by_backend["mask_multiply"].counts == {"ok": 2, "wrong": 2}
    assert by_backend["torch_mha"].counts == {"ok": 2, "refused": 2}
    assert sum(one.fastest for one in by_backend.values()) == 4
    assert min(one.behind for one in by_backend.values() if one.behind) >= 1.0
    assert by_backend["xformers"].timed == 0


def test_a_reason_stands_once_and_the_worst_first(sweep: Any) -> None:
    why = reasons(frame(sweep((128, 256), ("full", "causal & window(31, 0)"))))
    assert [(r.status, r.backend, r.cases) for r in why] == [
        ("wrong", "mask_multiply", 2),
        ("refused", "torch_mha", 2),
        ("unavailable", "xformers", 4),
    ]


def test_the_printed_table_has_every_backend_and_reason(sweep: Any) -> None:
    table = frame(sweep((128,)))
    text = printed(table)
    for name in table["backend"].unique():
        assert name in text
    assert "has no window mask" in text
    assert "37 budgets off" in text


def test_no_results_print_without_a_failure() -> None:
    assert "no results" in printed(frame([]))
    assert "no results" in markdown(frame([]))


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_inert_everywhere(a_case: Any, a_result: Any, tmp_path: Path, text: str) -> None:
    changes = dict.fromkeys(
        ("backend_version", "kernel", "suite", "group", "machine", "commit", "device"), text
    )
    bad = replace(a_result(a_case(), status="error", reason=text), backend=f"{text}", **changes)
    table = frame(
        [bad, replace(bad, status="refused"), a_result(a_case()), replace(a_result(a_case()), **changes)]
    )
    terminal = printed(table)
    assert "\x1b[31mred" not in terminal
    assert "\x1b]" not in terminal
    assert "\u202e" not in terminal
    if text.startswith("[bold"):
        assert text in terminal
    for path in write_report(table, tmp_path):
        assert path.stat().st_size > 0
    report = (tmp_path / "report.md").read_text()
    assert "<script" not in report
    assert "](http" not in report
    assert len(report) < 20_000
    rows = list(csv.reader((tmp_path / "results.csv").open(newline="")))
    assert len(rows) == 5
    for row in rows[1:]:
        assert not any(cell.lstrip().startswith(("=", "+", "@")) for cell in row)
        assert not any(cell.startswith("-") for cell in row if not cell[1:2].isdigit() or "+" in cell)


def test_markdown_columns_do_not_shift(a_case: Any, a_result: Any) -> None:
    table = frame([replace(a_result(a_case()), backend="a|b"), a_result(a_case())])
    lines = [line for line in markdown(table).splitlines() if line.startswith("|")]
    widths = {
        len(line.replace("\\|", "").split("|")) for line in lines if "backend" in line or "naive" in line
    }
    assert len(set(widths)) == 2  # the standings and the cases: one width each


def test_numbers_in_a_csv_stay_numbers(sweep: Any, tmp_path: Path) -> None:
    import pandas as pd

    table = frame(sweep((64,), ("full",), ("naive",)))
    again = pd.read_csv(write_csv(table, tmp_path / "x.csv"))
    assert again.loc[0, "fwd_median_ms"] == pytest.approx(table.loc[0, "fwd_median_ms"])
    assert int(again["peak_bytes"][0]) == int(table["peak_bytes"][0])


def test_a_long_text_is_cut_and_its_length_shown() -> None:
    assert clean("x" * 1000, 20) == f"{'x' * 19}… (1,000 characters)"
    assert clean("one\ntwo\tthree") == "one two three"
    assert csv_cell("=1") == "'=1"
    assert csv_cell("fine") == "fine"
    assert markdown_cell("a|b <i>") == "a\\|b &lt;i&gt;"
    assert (
        markdown_cell("@all #1 www.x.y http://z") == "&#64;&#8203;all &#35;&#8203;1 www&#46;x.y http&#58;//z"
    )


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0005, "0.500 us"),
        (0.82, "820 us"),
        (0.9999, "1.00 ms"),
        (12.34, "12.3 ms"),
        (4560, "4.56 s"),
        (None, "-"),
    ],
)
def test_times_have_three_digits(value: float | None, text: str) -> None:
    assert milliseconds(value) == text


@pytest.mark.parametrize(("value", "text"), [(512, "512 B"), (2 << 20, "2.00 MiB"), (float("nan"), "-")])
def test_sizes_are_powers_of_1024(value: float, text: str) -> None:
    assert bytes_text(value) == text


def test_figures_have_three_digits() -> None:
    assert three_digits(0.0123456) == "0.0123"
    assert three_digits(9.999) == "10.0"
    assert three_digits(1234.5) == "1234"
    assert factor(None) == "-"


def test_a_long_path_leaves_room_for_the_masks_and_many_shapes_fit_a_screen(
    a_case: Any, a_result: Any
) -> None:
    path = "a/very/long/path/to/a/folder/of/mine.py:attention_with_a_long_name"
    shapes = [{"q_heads": heads, "head_dim": dim} for heads in (1, 2, 4, 8) for dim in (16, 32, 64)]
    cases = [
        a_case(q_len=n, k_len=n, mask=mask, **shape)
        for shape in shapes
        for n in (128, 256, 512, 1024)
        for mask in (Causal() & SlidingWindow(127, 0), Full())
    ]
    table = frame([a_result(case, name) for case in cases for name in (path, "naive")])
    console = Console(file=io.StringIO(), width=80)
    for one in result_tables(table):
        console.print(one)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(lines) <= 40
    assert max(map(len, lines)) <= 80
    assert any(line.startswith("causal & window(127, 0) ") for line in lines)
    assert any(line.startswith("mine.py:attention") for line in lines)
    assert any("more cases: --details" in line for line in lines)
