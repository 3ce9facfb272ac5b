"""The frame says what the raw records say, and leaves missing what was not measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from attnbench.errors import StoreError
from attnbench.report import frame, load
from attnbench.report.files import write_parquet
from attnbench.sweep.store import Store

PROMISED = (
    [
        "case",
        "backend",
        "backend_version",
        "kernel",
        "status",
        "reason",
        "direction",
        "mask",
        "dtype",
        "batch",
    ]
    + ["q_len", "k_len", "q_heads", "kv_heads", "head_dim", "v_dim", "fwd_median_ms", "bwd_median_ms"]
    + ["fwd_tflops", "bwd_tflops", "roof_share", "peak_bytes", "least_peak_bytes", "saved_bytes"]
    + ["error_over_budget", "seed", "device", "machine", "commit", "started_at"]
)


@pytest.fixture
def stored(tmp_path: Path, sweep: Any, roofs: Any) -> Path:
    store = Store(tmp_path / "out")
    with store.writing():
        for result in sweep((64, 128), ("full", "causal"), ("naive", "mask_multiply")):
            store.append(result)
        store.add_environment("e1", {"machine": "m", "roofs": roofs})
    return store.folder


def test_the_frame_has_the_promised_columns(sweep: Any) -> None:
    assert set(PROMISED) <= set(frame(sweep((64,))).columns)


def test_no_results_give_an_empty_frame_with_the_same_columns(sweep: Any) -> None:
    assert list(frame([]).columns) == list(frame(sweep((64,))).columns)


def test_figures_follow_from_the_raw_samples(a_case: Any, a_result: Any, roofs: Any) -> None:
    case = a_case(q_len=100, k_len=100, q_heads=2, head_dim=8, direction="fwd_bwd")
    samples = {"fwd": [[1.0, 2.0], [3.0]], "bwd": [[4.0, 8.0]]}
    memory = {"fwd_peak": 3000, "saved": 2000, "bwd_peak": 9000}
    result = a_result(case, samples_ms=samples, memory_bytes=memory, least_peak_bytes=4500)
    row = frame([result], {"e1": {"roofs": roofs}}).iloc[0]
    # 100 x 100 pairs in 2 heads; forward 2 (8 + 8) and backward 2 (24 + 16) FLOPs a pair.
    fwd_flops, bwd_flops = 20_000 * 32, 20_000 * 80
    assert row["fwd_median_ms"] == 2.0
    assert row["bwd_median_ms"] == 6.0
    assert row["fwd_tflops"] == pytest.approx(fwd_flops / 2e-3 / 1e12)
    assert row["bwd_tflops"] == pytest.approx(bwd_flops / 6e-3 / 1e12)
    assert row["peak_bytes"] == 9000
    assert row["saved_bytes"] == 2000
    assert row["peak_over_least"] == 2.0
    assert row["fwd_samples"] == 3
    assert row["fwd_samples_ms"] == [[1.0, 2.0], [3.0]]
    # Forward: of matrix 4.27 us, bytes (4 x 1,600 x 4 at 2e10 a second) 1.28 us and exponentials 5 us the last binds.
    assert row["fwd_roof_share"] == pytest.approx(5e-3 / 2.0)
    # Backward: matrix 10.67 us binds. Both passes: 15.67 us of 8 ms.
    assert row["bwd_roof_share"] == pytest.approx(1_600_000 / 150e9 * 1e3 / 6.0)
    assert row["roof_share"] == pytest.approx((5e-3 + 1_600_000 / 150e9 * 1e3) / 8.0)


def test_the_other_clocks_of_a_gpu_have_columns_of_their_own(a_case: Any, a_result: Any) -> None:
    from attnbench.measure.clocks import WarmCudaClock
    from attnbench.measure.other_clocks import GRAPH

    times = {WarmCudaClock.name: {"fwd": 1.5, "bwd": 4.0}, GRAPH: {"fwd": 1.2}}
    row = frame([a_result(a_case(direction="fwd_bwd"), other_clocks_ms=times)]).iloc[0]
    assert (row["fwd_warm_l2_ms"], row["bwd_warm_l2_ms"], row["fwd_graph_ms"]) == (1.5, 4.0, 1.2)
    assert np.isnan(row["bwd_graph_ms"])


def test_without_roofs_there_is_no_share(a_case: Any, a_result: Any) -> None:
    assert np.isnan(frame([a_result(a_case())])["roof_share"][0])


def test_what_was_not_measured_is_missing_and_never_zero(a_case: Any, a_result: Any) -> None:
    refused = frame([a_result(a_case(), status="refused", reason="no")])
    figures = ["fwd_median_ms", "bwd_median_ms", "fwd_tflops", "peak_bytes", "saved_bytes", "peak_over_least"]
    assert refused[[*figures, "error_over_budget", "roof_share", "fwd_samples"]].isna().all(axis=None)
    forward = frame([a_result(a_case())])
    assert forward[["bwd_median_ms", "bwd_tflops", "saved_bytes"]].isna().all(axis=None)
    assert forward["fwd_median_ms"].notna().all()


def test_a_backward_without_memory_has_no_peak(a_case: Any, a_result: Any) -> None:
    row = frame([a_result(a_case(direction="fwd_bwd"), memory_bytes={"fwd_peak": 10})]).iloc[0]
    assert pd.isna(row["peak_bytes"])
    assert row["fwd_peak_bytes"] == 10


def test_a_folder_a_file_and_a_renamed_copy_give_the_same_frame(stored: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base.jsonl"
    copy.write_bytes((stored / "results.jsonl").read_bytes())
    whole = load(stored)
    pd.testing.assert_frame_equal(whole, load(str(stored / "results.jsonl")))
    same = [name for name in whole.columns if not name.endswith("roof_share")]
    pd.testing.assert_frame_equal(whole[same], load(copy)[same])
    assert whole["roof_share"].notna().any()


def test_parquet_keeps_every_figure_and_the_raw_samples(stored: Path, tmp_path: Path) -> None:
    table = load(stored)
    again = load(write_parquet(table, tmp_path / "x.parquet"))
    assert list(again.columns) == list(table.columns)
    lists = ["fwd_samples_ms", "bwd_samples_ms", "notes"]
    pd.testing.assert_frame_equal(again.drop(columns=lists), table.drop(columns=lists), check_dtype=False)
    for one, two in zip(again["fwd_samples_ms"], table["fwd_samples_ms"], strict=True):
        assert [list(block) for block in one] == two


def test_a_path_without_results_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"results\.jsonl.*attnbench run --out"):
        load(tmp_path)


def test_a_file_that_holds_no_result_is_not_an_empty_one(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.touch()
    assert load(tmp_path).empty
    file.write_bytes(b"PAR1, and no end of a line")
    with pytest.raises(StoreError, match=r"results\.jsonl holds no whole result"):
        load(tmp_path)


def test_a_corrupt_line_is_named(stored: Path) -> None:
    file = stored / "results.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(lines[0] + b"{broken\n" + b"".join(lines[1:]))
    with pytest.raises(StoreError, match="line 2"):
        load(stored)
