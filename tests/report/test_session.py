"""`run` and `backends` give Python code what the command line shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import attnbench as ab
from attnbench.device import resolve_device
from attnbench.errors import AttnbenchError

SUITE = """
[[cpu.grid]]
seq = [16]
heads = [1]
head_dim = [8]
mask = ["full"]
"""


def right(q: Any, k: Any, v: Any, *, mask: Any, scores: Any, scale: float) -> Any:
    return ((q @ k.mT) * scale).softmax(-1) @ v


def wrong(q: Any, k: Any, v: Any, *, mask: Any, scores: Any, scale: float) -> Any:
    return 2 * v


@pytest.fixture
def suite(tmp_path: Path) -> str:
    (tmp_path / "small.toml").write_text(SUITE)
    return str(tmp_path / "small.toml")


def test_run_takes_functions_and_gives_the_frame(suite: str) -> None:
    table = ab.run(suite, backends=[right, wrong], device="cpu", rounds=1).set_index("backend")
    assert dict(table["status"]) == {"right": "ok", "wrong": "wrong"}
    assert table["fwd_median_ms"]["right"] > 0
    assert table.loc["wrong", ["fwd_median_ms", "fwd_tflops"]].isna().all()
    assert set(table["suite"]) == {"small"}


def test_run_with_a_folder_leaves_results_that_load_reads(suite: str, tmp_path: Path) -> None:
    table = ab.run(suite, backends=[right], device="cpu", out=tmp_path / "out", rounds=1)
    again = ab.load(tmp_path / "out")
    assert again["fwd_samples_ms"].tolist() == table["fwd_samples_ms"].tolist()
    assert again["roof_share"].notna().all()


def test_backends_lists_those_that_are_not_available_with_the_reason() -> None:
    table = ab.backends().set_index("name")
    assert table.loc["naive", "available"]
    assert table.loc["naive", "version"]
    missing = table[~table["available"].astype(bool)]
    assert (missing["reason"].str.len() > 0).all()


def sharper(q: Any, k: Any, v: Any, *, mask: Any, scores: Any, scale: float) -> Any:
    return ab.attention(q, k, v, mask=mask, scale=1.02 * scale)


def test_run_takes_the_suites_of_models_and_resumes_them(tmp_path: Path) -> None:
    about: dict[str, Any] = {"device": "cpu", "tasks": ["causal"], "steps": 2, "out": tmp_path}
    table = ab.run("generation", backends=["naive", sharper], **about).set_index("backend")
    assert dict(table["status"]) == {"naive": "ok", "sharper": "wrong"}
    assert (tmp_path / "generation.png").stat().st_size > 0
    with pytest.raises(AttnbenchError, match="has 2 runs already"):
        ab.run("generation", backends=["naive"], **about)
    more = ab.run("generation", backends=["naive", "sdpa_math"], resume=True, **about)
    assert list(more["backend"]) == ["naive", "sharper", "sdpa_math"]
    with pytest.raises(AttnbenchError, match="fp32, not bf16"):
        ab.run("generation", backends=["naive"], dtypes=["bf16"], device="cpu")


@pytest.mark.parametrize("device", ["tpu", "cuda:x", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(AttnbenchError, match="device"):
        resolve_device(device)
