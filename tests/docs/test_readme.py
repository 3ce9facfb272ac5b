"""The table of the README shows the stored results, and its ten lines are a right backend."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

import attnbench as ab

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text()
CASE = "q512-k512-h4-d64-fp32-causal-fwd_bwd"


@pytest.fixture(scope="module")
def stored() -> pd.DataFrame:
    frame = ab.load(ROOT / "results" / "cpu-2-cores")
    return frame[(frame.case == CASE) & (frame.status == "ok")].set_index("backend")


def test_the_table_shows_the_stored_figures(stored: pd.DataFrame) -> None:
    lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in TEXT.splitlines() if "| ok |" in line
    ]
    shown = {cells[0].removeprefix("~ ").split(",")[0]: cells[2:] for cells in lines}
    assert set(shown) == set(stored.index)
    for name, (forward, backward, tflops, peak, error) in shown.items():
        row = stored.loc[name]
        assert peak == f"{row.peak_bytes / row.least_peak_bytes:#.3g}x", name
        assert error == f"{row.error_over_budget:.2f}", name
        if forward == backward == "not timed":
            assert pd.isna(row.fwd_median_ms), name
            continue
        assert (forward, backward) == (f"{row.fwd_median_ms:.2f} ms", f"{row.bwd_median_ms:.2f} ms"), name
        work = row.fwd_tflops * row.fwd_median_ms + row.bwd_tflops * row.bwd_median_ms
        assert tflops == f"{work / (row.fwd_median_ms + row.bwd_median_ms):.3f}", name


def test_the_ten_lines_are_a_right_backend(tmp_path: Path) -> None:
    (code,) = re.findall(r"## Add a backend in ten lines\n\n```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "mine.py").write_text(code)
    report = ab.check(f"{tmp_path / 'mine.py'}:attention", level="smoke", dtypes=["fp32"])
    assert report.ok, report
