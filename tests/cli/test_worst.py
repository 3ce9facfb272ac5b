"""A report shows where its worst failure is wrong."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from attnbench.cli.app import app

WRONG = """
def off(q, k, v, *, mask, scores, scale):
    allowed = mask.materialize(q.shape[0], q.shape[1], q.shape[2], k.shape[2])
    s = (q @ k.transpose(-1, -2) * scale).masked_fill(~allowed, float("-inf"))
    out = s.softmax(-1) @ v
    out[:, 1, 40:] *= 1.5
    return out
"""


def run(tmp_path: Path, backends: str) -> Path:
    words = ["run", "--mask", "causal", "--seq", "48", "--heads", "2", "--head-dim", "16", "--rounds", "1"]
    words += ["--device", "cpu", "--backend", backends, "--out", str(tmp_path / "results")]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["report", str(tmp_path / "results")])
    assert done.exit_code == 0, done.output
    return tmp_path / "results" / "report"


def test_the_worst_failure_is_drawn_in_the_report(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text(WRONG)
    folder = run(tmp_path, f"naive,{tmp_path / 'wrong.py'}:off")
    assert (folder / "worst" / "errors.png").read_bytes().startswith(b"\x89PNG")
    text = (folder / "report.md").read_text()
    assert "(worst/errors.png)" in text
    assert "## The worst failure" in text


def test_a_report_without_a_failure_shows_none(tmp_path: Path) -> None:
    folder = run(tmp_path, "naive")
    assert not (folder / "worst").exists()
    assert "worst failure" not in (folder / "report.md").read_text()
