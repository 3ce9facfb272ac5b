"""The screen of the README is that of the stored results, and its ten lines are a right backend."""

from __future__ import annotations

import io
import re
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

import attnbench as ab
from attnbench.report.terminal import result_tables

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
SHOWN = re.search(r"```text\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def stored() -> pd.DataFrame:
    return ab.load(ROOT / "results" / "cpu-2-cores")


def test_the_screen_is_what_the_program_prints_of_the_stored_results(stored: pd.DataFrame) -> None:
    console = Console(file=io.StringIO(), width=80)
    for one in result_tables(stored):
        console.print(one)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert SHOWN is not None
    assert [line.rstrip() for line in printed.splitlines()] == SHOWN[1].splitlines()
    assert len(SHOWN[1].splitlines()) <= 50
    assert max(map(len, SHOWN[1].splitlines())) <= 80


def test_the_lines_of_the_backends_follow_from_the_stored_samples(stored: pd.DataFrame) -> None:
    assert SHOWN is not None
    lines = {
        line.split()[0]: line for line in SHOWN[1].partition("Backends ")[2].splitlines() if " of 18 " in line
    }
    right: list[dict[Any, Any]] = [row for row in stored.to_dict("records") if row["status"] == "ok"]
    assert set(lines) == {row["backend"] for row in right}
    times = {(row["case"], row["backend"]): total_ms(row) for row in right if len(row["fwd_samples_ms"])}
    for backend, line in lines.items():
        rows = [row for row in right if row["backend"] == backend]
        assert f"{len(rows)} of 18" in line
        assert line.endswith(f"{max(row['error_over_budget'] for row in rows):.3f}")
        over = geometric_mean(row["peak_bytes"] / row["least_peak_bytes"] for row in rows)
        assert f" {over:#.3g}x " in line
        own = {case: ms for (case, name), ms in times.items() if name == backend}
        if own:
            least = {case: min(ms for (other, _), ms in times.items() if other == case) for case in own}
            shown = float(re.findall(r"([\d.]+)x ", line)[0])
            behind = geometric_mean(ms / least[case] for case, ms in own.items())
            assert shown == pytest.approx(behind, rel=0.01)


def total_ms(row: dict[Any, Any]) -> float:
    passes = ("fwd", "bwd") if row["direction"] == "fwd_bwd" else ("fwd",)
    return sum(median(ms for one in row[f"{which}_samples_ms"] for ms in one) for which in passes)


def test_the_ten_lines_are_a_right_backend(tmp_path: Path) -> None:
    (code,) = re.findall(r"## Add a backend in ten lines\n\n```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    report = ab.check(f"{tmp_path / 'mine.py'}:attention", level="smoke", dtypes=["fp32"])
    assert report.ok, report
