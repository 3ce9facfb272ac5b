"""The page in a browser, from a file, without a network: every control works, and no foreign text runs."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest

from attnbench.report.columns import Column
from attnbench.report.page import rows
from tests.page.sets import a_result, a_set, many, small_set

SCRIPT = "<script>window.harmed = 1</script>"
HOSTILE = (
    f"</script>{SCRIPT}",
    '"><img src=x onerror="window.harmed=1">',
    "<svg onload=window.harmed=1>",
    "javascript:window.harmed=1",
    "'];window.harmed=1;['",
    "${window.harmed=1}{{7*7}}",
    "datum['x'] || (window.harmed=1)",
    "</style><style>body{display:none}</style>",
    "<!--<script>",
    "name\x00\x1b[31m\u202egnp.exe\u2028",
    "x" * 3_000_000,
)


def test_it_opens_from_a_file_without_a_network_and_without_an_error(opened: Any) -> None:
    page = opened(small_set())
    assert page.complaints == []
    assert [
        address for address in page.requests if not address.startswith(("file:", "data:", "about:"))
    ] == []
    assert page.tab.locator(".chart svg").count() == 6  # four quantities, the roofline, the spread
    assert page.tab.locator(".chart.empty").count() == 0


def test_a_chart_is_drawn_when_it_is_scrolled_to(opened: Any) -> None:
    page = opened(small_set())
    page.go(whole=False)
    assert page.tab.locator("#trust .chart svg").count() == 0
    page.tab.locator("#trust .chart").scroll_into_view_if_needed()
    page.tab.locator("#trust .chart svg").wait_for()
    assert page.tab.locator("#chart-memory svg").count() == 0  # passed over


def test_the_fastest_right_backend_stands_by_mask_direction_and_length(opened: Any) -> None:
    page = opened(small_set())
    row = page.tab.locator("#overview tr", has_text="causal").filter(has_text="forward + backward")
    column = page.tab.locator(".winners thead th").all_inner_texts().index("1024 tokens")
    cell = row.locator("th, td").nth(column)
    assert "quick" in cell.inner_text()
    assert "ahead of plain" in cell.inner_text()
    assert "bad" not in page.tab.locator(".winners").inner_text()
    assert "slow" not in page.tab.locator(".winners").inner_text()
    assert "wrong on 12" in page.tab.locator(".verdicts tr", has_text="bad").inner_text()
    cell.locator("a").click()
    page.ready()
    assert page.tab.input_value("[data-field=mask]") == "causal"
    assert page.tab.input_value("[data-field=direction]") == "fwd_bwd"


def test_a_filter_changes_the_charts_and_the_table(opened: Any) -> None:
    page = opened(small_set())
    before = page.marks("time")
    assert len(before) == 6  # two timed backends at three lengths; what is wrong is in no speed chart
    assert (
        len(page.marks("memory")) == page.tab.locator("#figures tbody tr").count() == 9
    )  # memory needs no clock
    page.select("direction", "fwd_bwd")
    assert page.marks("time") != before
    page.tab.uncheck("#backends input[value=plain]")
    page.ready()
    assert len(page.marks("time")) == 3
    assert page.tab.locator("#figures tbody tr").count() == 6
    assert "bad (wrong: out is 37 budgets off)" in page.tab.inner_text("#absent")
    assert "slow (right, not timed" in page.tab.inner_text("#absent")


def test_a_column_that_every_table_shows_stands_among_the_figures(
    opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    column = Column("fwd_peak_bytes", "whole", "", "bytes", "peak of the forward")
    monkeypatch.setattr(rows, "more_columns", lambda: [column])
    page = opened(small_set())
    assert page.complaints == []
    assert page.tab.locator("#figures thead th").last.inner_text() == "peak of the forward"
    assert page.tab.locator("#figures tbody tr").first.locator("td").last.inner_text() == "512 KiB"


def test_the_pass_of_training_is_a_choice(opened: Any) -> None:
    page = opened(small_set()).select("direction", "fwd_bwd")
    both = page.tab.inner_text("#figures tbody tr:first-child td:nth-child(3)")
    page.select("pass", "fwd")
    assert page.tab.inner_text("#figures tbody tr:first-child td:nth-child(3)") != both


def test_linear_axes_are_a_choice(opened: Any) -> None:
    page = opened(small_set())
    before = page.marks("time")
    page.tab.uncheck("[data-field=log]")
    page.ready()
    assert page.marks("time") != before
    assert page.complaints == []


def test_a_link_restores_the_view(opened: Any) -> None:
    page = opened(small_set()).select("mask", "causal").select("direction", "fwd_bwd").select("pass", "bwd")
    page.tab.uncheck("#backends input[value=plain]")
    page.tab.uncheck("[data-field=log]")
    page.ready()
    address, marks, summary = page.tab.url, page.marks("time"), page.tab.inner_text("#summary")
    page.go(f"#{address.split('#')[1]}")
    assert page.tab.inner_text("#summary") == summary
    assert page.marks("time") == marks
    assert page.tab.input_value("[data-field=pass]") == "bwd"
    assert not page.tab.is_checked("#backends input[value=plain]")


def test_a_choice_that_was_not_run_moves_to_the_nearest_that_was(opened: Any) -> None:
    results = [a_result("quick"), a_result("quick", mask="full", heads=8), a_result("quick", length=512)]
    page = opened(a_set(results))
    page.select("heads", "8 heads")
    assert page.tab.input_value("[data-field=mask]") == "full"
    assert len(page.marks("time")) == 1


def test_hover_shows_the_raw_figures(opened: Any) -> None:
    page = opened(small_set())
    page.tab.locator("#chart-time").scroll_into_view_if_needed()
    page.tab.locator("#chart-time .mark-symbol path").first.hover(force=True)
    tooltip = page.tab.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    for part in ("tokens", "10 %", "90 %", "samples", "of its budget"):
        assert part in tooltip.inner_text()


def test_the_raw_samples_of_a_figure_are_a_click_away(opened: Any) -> None:
    page = opened(small_set()).select("direction", "fwd_bwd")
    page.tab.locator("#figures button").first.click()
    page.ready()
    assert len(page.marks("samples")) == 48  # eight rounds of three, forward and backward
    assert page.tab.locator("#rounds tbody tr").count() == 16


@pytest.mark.parametrize("field", ["names", "texts"])
def test_hostile_texts_are_shown_and_never_run(opened: Any, field: str) -> None:
    results = []
    for number, text in enumerate(HOSTILE):
        names: dict[str, Any] = {"backend": text, "kernel": text}
        texts: dict[str, Any] = {"mask": text, "case_id": f"{text}{number}", "notes": [text], "machine": text}
        changes = names if field == "names" else texts
        results += [
            a_result(**({"length": 256 + number} | changes)),
            a_result(**({"length": 512 + number} | changes)),
        ]
        errors = {text: {"over_budget": 37.0, "worst": [text]}}
        wrong = a_result(
            text, length=1024, status="wrong", reason=text, errors=errors, error_over_budget=37.0
        )
        results.append(wrong)
    machine = {
        "os": HOSTILE[1],
        "libraries": dict.fromkeys(HOSTILE[:9], HOSTILE[0]),
        "clock_policy": {HOSTILE[2]: HOSTILE[0]},
    }
    first, second = a_set(results, HOSTILE[1], **machine), a_set(results[::-1], HOSTILE[0])
    page = opened(first, second, address="#explore&mask=<img src=x>&off=<b>")
    assert page.complaints == []
    assert page.tab.locator("img, iframe, object, embed, base, meta[http-equiv=refresh]").count() == 0
    assert page.tab.locator("script").count() == 3
    assert page.path.stat().st_size < 3e6  # megabytes of a text are cut
    assert "<script>window.harmed = 1</script>" in page.tab.inner_text("#overview")  # shown as what it is
    page.tab.locator("#chart-time .mark-symbol path").first.hover(force=True)
    page.tab.locator("#vg-tooltip-element").wait_for(state="visible")
    assert page.tab.locator("#vg-tooltip-element *").count() == 0
    assert page.tab.evaluate("window.harmed") is None


def test_a_planted_script_does_not_run_even_where_it_stands_in_the_page(opened: Any) -> None:
    page = opened(small_set())
    planted = page.path.with_name("planted.html")
    planted.write_text(page.path.read_text().replace("<main>", f"<main>{SCRIPT}<img src=x onerror=harmed=1>"))
    page.path = planted
    page.go()
    assert page.tab.evaluate("window.harmed") is None
    assert any("Content Security Policy" in text for text in page.complaints)


def test_everything_is_reached_and_used_by_keyboard(opened: Any) -> None:
    page = opened(small_set())
    tab, reached = page.tab, []
    for _ in range(80):
        tab.keyboard.press("Tab")
        reached.append(tab.evaluate("document.activeElement.dataset.field || document.activeElement.id"))
        if reached[-1] == "theme":
            tab.keyboard.press("Enter")
        if reached[-1] == "mask":
            tab.keyboard.press("ArrowDown")
            page.ready()
            break
    assert "theme" in reached
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.input_value("[data-field=mask]") == "causal"
    assert tab.evaluate("document.activeElement.dataset.field") == "mask"
    tab.focus("#backends input[value=plain]")
    tab.keyboard.press("Space")
    page.ready()
    assert tab.evaluate("document.activeElement.value") == "plain"  # the focus stays where it was
    assert len(page.marks("time")) == 3


# Of every visible text in the page: WCAG's contrast with the first opaque colour behind it, if below 4.5.
CONTRAST = """() => {
  const linear = (x) => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4;
  const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    const colour = element ? rgba(getComputedStyle(element).backgroundColor) : [255, 255, 255, 255];
    return colour[3] === 255 ? colour : behind(element.parentElement);
  };
  const low = [];
  const texts = document.createTreeWalker(document.querySelector("main"), NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement, text = texts.currentNode.textContent.trim();
    if (!text || !element.checkVisibility() || element.closest("svg, script")) continue;
    const front = luminance(rgba(getComputedStyle(element).color)), back = luminance(behind(element));
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) low.push(`${ratio.toFixed(2)} ${element.className} ${text.slice(0, 40)}`);
  }
  return low;
}"""


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_texts_stand_out_from_what_is_behind_them(opened: Any, dark: bool) -> None:
    page = opened(small_set(), small_set("after", slower=1.5), dark=dark)
    assert page.tab.evaluate(CONTRAST) == []


def test_too_little_contrast_would_be_seen(opened: Any) -> None:
    page = opened(small_set())
    page.tab.eval_on_selector(".note", "note => { note.style.color = '#9a9a9a'; }")
    assert any("note" in text for text in page.tab.evaluate(CONTRAST))


def test_dark_mode_follows_the_system_and_the_button(opened: Any) -> None:
    page = opened(small_set(), dark=True)
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.tab.evaluate(paper) == "rgb(20, 24, 29)"
    label = page.tab.locator("#chart-time .role-title-text text").first
    assert label.get_attribute("fill") == "#e7ebf0"
    page.tab.click("#theme")
    page.ready()
    assert page.tab.evaluate(paper) == "rgb(255, 255, 255)"
    assert label.get_attribute("fill") == "#1a1f26"  # the charts follow


def test_it_has_headings_landmarks_labels_and_a_table_by_every_chart(opened: Any) -> None:
    tab = opened(small_set(), small_set("after", slower=1.5)).tab
    assert tab.locator("h1").count() == 1
    for landmark in ("header", "nav", "main", "footer"):
        assert tab.locator(landmark).count() == 1
    unnamed = "all => all.filter(e => !e.labels.length && !e.getAttribute('aria-label')).length"
    assert tab.eval_on_selector_all("select, input", unnamed) == 0
    assert tab.locator("th:not([scope])").count() == 0
    levels = tab.eval_on_selector_all("h1, h2, h3, h4", "all => all.map(h => Number(h.tagName[1]))")
    assert all(below <= above + 1 for above, below in pairwise(levels))
    for section in ("explore", "trust", "compare"):
        assert tab.locator(f"#{section} .chart svg").count() > 0
        assert tab.locator(f"#{section} .chart:has(svg):not([aria-label*='table below'])").count() == 0
        assert tab.locator(f"#{section} table tbody tr").count() > 0


@pytest.mark.parametrize("width", [400, 1400])
def test_no_width_makes_the_page_scroll_sideways(opened: Any, width: int) -> None:
    page = opened(small_set(), small_set("after", slower=1.5), width=width)
    assert page.tab.evaluate("document.documentElement.scrollWidth") <= width


def test_two_sets_are_compared_with_the_verdict_of_the_gate(opened: Any) -> None:
    page = opened(small_set("before"), small_set("after", slower=1.5))
    text = page.tab.inner_text("#compare")
    assert "after against before" in text
    assert "12 wrong" in text  # it is wrong in both, and the gate does not forgive it
    assert "18 suspect" in text  # six cases of one pass, six of two
    assert "1.50x" in text
    shown = page.tab.locator("#overview [data-set]:visible")
    assert "1.50x ahead of plain" in shown.inner_text()
    page.select("set", "1")
    assert "no clear winner" in shown.inner_text()  # as slow as plain


def test_without_scripts_the_tables_are_there(browser: Any, opened: Any) -> None:
    path = opened(small_set()).path
    context = browser.new_context(java_script_enabled=False)
    tab = context.new_page()
    tab.goto(path.as_uri())
    assert tab.locator(".winners").first.is_visible()
    assert tab.locator(".agreement").last.is_visible()
    context.close()


@pytest.mark.parametrize("count", [2_000, pytest.param(50_000, marks=pytest.mark.slow)])
def test_many_rows_open_and_filter(opened: Any, capsys: pytest.CaptureFixture[str], count: int) -> None:
    page = opened(many(count))
    assert page.path.stat().st_size < 2e6 + 360 * count  # 20 MB for 50,000
    start = time.perf_counter()
    page.go(whole=False)
    opening = time.perf_counter() - start
    page.go()
    start = time.perf_counter()
    page.select("mask", "causal").select("dtype", "bf16")
    filtering = (time.perf_counter() - start) / 2
    assert page.complaints == []
    assert len(page.marks("time")) >= 20
    with capsys.disabled():
        size = page.path.stat().st_size / 1e6
        print(f"\n{count} rows: {size:.1f} MB, opens in {opening:.2f} s, filters in {filtering:.2f} s")  # noqa: T201
