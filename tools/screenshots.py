"""Pictures of the page's views, wide and narrow; look at them before you commit them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from attnbench.gate.pairing import read_set
from attnbench.report.page import write_page
from tests.page.conftest import browser_path

WIDTHS, HEIGHT = (1400, 400), 900


def main() -> None:
    """`tools/screenshots.py results/cpu-2-cores --against BASE HEAD`: first screen, explore and compare."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("--against", type=Path, nargs=2)
    parser.add_argument("--out", type=Path, default=Path("docs/screenshots"))
    options = parser.parse_args()
    from playwright.sync_api import sync_playwright

    options.out.mkdir(parents=True, exist_ok=True)
    one = write_page([read_set(options.results)], options.out / "page.html")
    views = [(one, "overview", ""), (one, "explore", "#explore&mask=causal&direction=fwd")]
    if options.against:
        two = write_page([read_set(path) for path in options.against], options.out / "compare.html")
        views.append((two, "compare", "#compare"))
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=browser_path(), args=["--no-sandbox"])
        for path, name, address in views:
            for width in WIDTHS:
                take(browser, path, address, width, options.out / f"{name}-{width}.png")
    for path in {path for path, _, _ in views}:
        path.unlink()


def take(browser: Any, path: Path, address: str, width: int, to: Path) -> None:
    context = browser.new_context(viewport={"width": width, "height": HEIGHT}, offline=True)
    tab = context.new_page()
    tab.goto(f"{path.resolve().as_uri()}{address}")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")  # every chart, not only what is in sight
    tab.locator("html[data-drawing='0']").wait_for(state="attached")
    tab.screenshot(path=to)
    print(to, to.stat().st_size)
    context.close()


if __name__ == "__main__":
    main()
