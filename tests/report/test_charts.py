"""The charts show the medians, the floor and the spread, and never a wrong result as fast."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from attnbench.report import frame
from attnbench.report.charts.curves import speed_and_memory
from attnbench.report.charts.data import curve_panels, dot_rows
from attnbench.report.charts.matrices import draw_error, matrices, matrix
from attnbench.report.charts.palette import COLOURS, ink, length_tick, looks, spread_apart
from attnbench.report.files import write_charts

LENGTHS = (256, 512, 1024)


@pytest.fixture
def table(sweep: Any) -> Any:
    return frame(sweep(LENGTHS, ("full", "causal")))


def drawn_lines(figure: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """(mask, note) of each panel: its lines by label."""
    panels = {}
    for axes in figure.axes:
        if axes.get_visible() and axes.get_lines():
            key = (axes.get_title(loc="left"), axes.texts[0].get_text())
            panels[key] = {line.get_label(): line for line in axes.get_lines()}
    return panels


def test_a_time_chart_draws_the_medians(table: Any) -> None:
    panels = drawn_lines(dict(speed_and_memory(table))["time"])
    assert len(panels) == 4  # two masks, forward and backward
    for (mask, note), lines in panels.items():
        column = "bwd_median_ms" if note.startswith("backward") else "fwd_median_ms"
        for backend, line in lines.items():
            rows = table[(table["mask"] == mask) & (table["backend"] == backend)].sort_values("q_len")
            np.testing.assert_array_equal(line.get_xdata(), rows["q_len"])
            np.testing.assert_array_equal(line.get_ydata(), rows[column])


def test_a_wrong_result_is_in_no_speed_or_memory_chart(table: Any) -> None:
    for _, figure in speed_and_memory(table):
        panels = drawn_lines(figure)
        assert any("mask_multiply" in lines for (mask, _), lines in panels.items() if mask == "full")
        assert not any("mask_multiply" in lines for (mask, _), lines in panels.items() if mask == "causal")


def test_even_a_wrong_result_with_figures_is_not_drawn(table: Any) -> None:
    forged = table.copy()
    forged.loc[forged["backend"] == "naive", "status"] = "wrong"
    assert not any(
        "naive" in lines for _, fig in speed_and_memory(forged) for lines in drawn_lines(fig).values()
    )
    one = forged[forged["q_len"] == 256]
    assert not any(
        "naive" in values for row in dot_rows(one, "median_ms", ("fwd",)) for values in row.values.values()
    )


def test_the_band_is_the_spread_of_the_samples(table: Any) -> None:
    panel = next(p for p in curve_panels(table, "median_ms") if p.title == "full")
    curve = next(c for c in panel.traces if c.backend == "naive")
    rows = table[(table["mask"] == "full") & (table["backend"] == "naive")].sort_values("q_len")
    samples = [[ms for one in rounds for ms in one] for rounds in rows["fwd_samples_ms"]]
    np.testing.assert_allclose(curve.low, [np.quantile(s, 0.1) for s in samples])
    np.testing.assert_allclose(curve.high, [np.quantile(s, 0.9) for s in samples])


def test_the_memory_chart_has_the_floor(table: Any) -> None:
    lines = drawn_lines(dict(speed_and_memory(table))["memory"])
    least = table[(table["mask"] == "full") & (table["backend"] == "naive")].sort_values("q_len")[
        "least_peak_bytes"
    ]
    full = next(lines for (mask, _), lines in lines.items() if mask == "full")
    np.testing.assert_array_equal(full["minimum"].get_ydata(), least.astype(float))


def test_a_backend_has_one_colour_and_marker_in_all_charts(table: Any) -> None:
    looks_of: dict[str, set[tuple[str, str]]] = {}
    for _, figure in speed_and_memory(table):
        for lines in drawn_lines(figure).values():
            for name, line in lines.items():
                if name != "minimum":
                    looks_of.setdefault(name, set()).add((str(line.get_color()), str(line.get_marker())))
    assert len(looks_of) == 7
    assert all(len(look) == 1 for look in looks_of.values())
    assert len(set.union(*looks_of.values())) == len(looks_of)


def test_one_length_is_charted_by_case(sweep: Any) -> None:
    charts = dict(speed_and_memory(frame(sweep((256,), ("full", "causal")))))
    assert set(charts) == {"time-cases", "tflops-cases", "memory-cases"}
    labels = [text.get_text() for text in charts["time-cases"].axes[0].get_yticklabels()]
    assert [label.strip() for label in labels] == ["full, 256", "causal, 256"]


def test_masks_with_tables_lie_on_one_line(sweep: Any) -> None:
    results = [r for n in (64, 128) for r in sweep((n,), (f"documents({n // 2}, {n // 2})",), ("naive",))]
    panels = curve_panels(frame(results), "median_ms")
    assert {panel.title for panel in panels} == {"documents(…)"}
    assert panels[0].traces[0].x == (64.0, 128.0)


def test_two_cases_at_one_point_are_told_apart(sweep: Any) -> None:
    results = sweep((64,), ("documents(32, 32)", "documents(16, 48)"), ("naive",))
    rows = dot_rows(frame(results), "median_ms", ("fwd",))
    assert [row.label for row in rows] == ["documents(32, 32), 64", "documents(16, 48), 64"]


def test_the_error_matrix_holds_the_largest_error(table: Any) -> None:
    errors = matrix(table)
    naive = table[(table["backend"] == "naive") & (table["mask"] == "causal")]
    assert errors.worst["naive", "causal"] == naive["error_over_budget"].max()
    assert errors.worst["mask_multiply", "causal"] == 37.0
    assert np.isnan(errors.worst["xformers", "causal"])
    assert errors.counts["mask_multiply", "causal"] == {"wrong": len(LENGTHS)}
    assert errors.counts["xformers", "full"] == {"unavailable": len(LENGTHS)}


def test_a_wrong_cell_is_marked_by_more_than_its_colour(table: Any) -> None:
    figure = draw_error(matrix(table), "")
    assert sum(text.get_text().startswith("✗") for text in figure.axes[0].texts) == 1
    assert "never judged: xformers" in [text.get_text() for text in figure.texts]


def test_every_chart_is_written_and_is_a_picture(table: Any, tmp_path: Path) -> None:
    names = {path.name for path in write_charts(table, tmp_path)}
    assert names == {"time.png", "tflops.png", "memory.png", "error.png", "support.png"}
    for name in names:
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / name).stat().st_size > 10_000


def test_titles_can_be_read_and_fit_their_figure(table: Any, sweep: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    one_case = frame(sweep((64,), ("full",), ("naive",)))
    for _, figure in [
        *speed_and_memory(table),
        *matrices(table),
        *speed_and_memory(one_case),
        *matrices(one_case),
    ]:
        renderer = FigureCanvasAgg(figure).get_renderer()
        for text in figure.texts:
            assert float(text.get_fontsize()) >= 8
            assert text.get_window_extent(renderer).x1 <= figure.bbox.x1


def test_a_legend_fits_its_figure(sweep: Any) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    names = [f"backend_number_{n}" for n in range(12)]
    for _, figure in speed_and_memory(frame(sweep((64,), ("full",), names))):
        (legend,) = figure.legends
        renderer = FigureCanvasAgg(figure).get_renderer()
        assert legend.get_window_extent(renderer).x1 <= figure.bbox.x1


def test_results_without_any_figure_still_give_the_support_matrix(sweep: Any) -> None:
    table = frame(sweep((64,), ("full",), ()))
    assert list(speed_and_memory(table)) == []
    assert [name for name, _ in matrices(table)] == ["support"]


def test_labels_are_spread_apart_and_stay_inside() -> None:
    placed = spread_apart([0.5, 0.5, 0.51, 0.99, 1.2], 0.1)
    assert all(abs(a - b) >= 0.1 - 1e-9 for a, b in combinations(placed, 2))
    assert max(placed) <= 1 + 1e-9
    assert min(placed) >= 0
    assert sorted(placed) == placed
    assert spread_apart([0.1, 0.9], 0.1) == [0.1, 0.9]


def test_twelve_backends_have_twelve_looks() -> None:
    assert len({(look.colour, look.marker) for look in looks(map(str, range(12))).values()}) == 12


@pytest.mark.parametrize("colour", COLOURS)
def test_text_in_a_backends_colour_has_contrast_on_white(colour: str) -> None:
    parts = [int(ink(colour)[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert 1.05 / (luminance + 0.05) >= 4.4


@pytest.mark.parametrize(("tokens", "text"), [(197, "197"), (4096, "4096"), (16384, "16k"), (1 << 20, "1M")])
def test_lengths_are_ticked_in_tokens(tokens: int, text: str) -> None:
    assert length_tick(tokens) == text
