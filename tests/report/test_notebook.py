"""A notebook shows a check, a sweep and the backends as the command line does, and how far a sweep is."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from attnbench.report.frame import frame
from attnbench.report.notebook import ResultFrame, as_html

SUITE = """
[[grid]]
seq = [16, 24]
heads = ["2"]
head_dim = ["8"]
dtype = ["fp32"]
mask = ["causal"]
"""
CELLS = (
    """import attnbench as ab
report = ab.check("naive", case={"q_len": 4, "k_len": 4, "q_heads": 1, "head_dim": 16, "dtype": "fp32"})
report""",
    "ab.backends()",
    """def twice(q, k, v, *, mask, scores, scale):
    return 2 * v
results = ab.run("suite.toml", backends=["sdpa_cudnn", twice], device="cpu", rounds=1)
results""",
    "results[['backend', 'status']]",
)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """The outputs of each cell, executed by Jupyter's own client."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    folder = tmp_path_factory.mktemp("notebook")
    (folder / "suite.toml").write_text(SUITE)
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in CELLS])
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(notebook, timeout=180, kernel_name="python3", resources=resources).execute()
    return [cell.outputs for cell in notebook.cells]


def html_of(cell: list[Any]) -> str:
    return "".join(output.data.get("text/html", "") for output in cell if "data" in output)


def test_a_report_shows_its_verdict_in_colour(outputs: list[list[Any]]) -> None:
    assert '<b style="color:#2C8C6B">naive: right' in html_of(outputs[0])


def test_the_backends_are_the_table_of_the_command_line(outputs: list[list[Any]]) -> None:
    shown = html_of(outputs[1])
    assert "torch_nested" in shown
    assert "masks; limits" in shown


def test_a_sweep_is_the_screen_and_a_selection_is_a_plain_frame(outputs: list[list[Any]]) -> None:
    shown = html_of(outputs[2])
    assert "Fastest right backend" in shown
    assert "runs on cuda, not on cpu" in shown
    assert "wrong" in shown
    assert "<table" in html_of(outputs[3])


def test_progress_stands_in_the_output_of_the_cell(outputs: list[list[Any]]) -> None:
    texts = [output.data.get("text/plain", "") for output in outputs[2] if "data" in output]
    progress = next(text for text in texts if "4 results" in text)
    assert "wrong: twice q16" in progress


def test_foreign_text_is_escaped(a_case: Any, a_result: Any) -> None:
    bad = a_result(a_case(), status="error", reason="<script>alert(1)</script>")
    shown = ResultFrame(frame([bad]))._repr_html_()
    assert "<script>" not in shown
    assert "&lt;script&gt;" in shown


def test_a_frame_without_its_columns_shows_as_a_table(a_case: Any, a_result: Any) -> None:
    whole = ResultFrame(frame([a_result(a_case())]))
    assert type(whole[["backend"]]) is pd.DataFrame
    del whole["status"]
    assert "<table" in whole._repr_html_()


def test_html_needs_no_notebook() -> None:
    assert as_html(["plain"]).startswith("<pre")
