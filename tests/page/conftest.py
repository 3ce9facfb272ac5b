"""A browser without a network, and a page opened in it from a file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from attnbench.gate import ResultSet
from attnbench.report.page import write_page
from tests.page.sets import small_set

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NO_BROWSER = "no Chromium is installed (apt-get install chromium, or set ATTNBENCH_BROWSER to one)"


def browser_path() -> str | None:
    path = os.environ.get("ATTNBENCH_BROWSER")
    return path or next((path for name in BROWSERS if (path := shutil.which(name))), None)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests of a file, closed with the last: a browser starts processes while other tests count theirs."""
    path = browser_path()
    if path is None:
        pytest.skip(NO_BROWSER)
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


class Opened:
    """A page opened from a file in a browser without a network; its requests and its complaints."""

    def __init__(self, tab: Any, path: Path) -> None:
        self.tab, self.path = tab, path
        self.complaints: list[str] = []
        self.requests: list[str] = []
        tab.on("console", self._note)
        tab.on("pageerror", self._fail)
        tab.on("dialog", self._dismiss)
        tab.on("request", lambda request: self.requests.append(request.url))

    def _note(self, message: Any) -> None:
        self.complaints.append(f"{message.type}: {message.text}")

    def _fail(self, error: Any) -> None:
        self.complaints.append(f"error: {error}")

    def _dismiss(self, dialog: Any) -> None:
        self.complaints.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def go(self, address: str = "", *, whole: bool = True) -> Opened:
        """Open the page; with every chart drawn, or (not `whole`) as a reader has it before scrolling."""
        self.tab.goto("about:blank")
        self.tab.goto(f"{self.path.as_uri()}{address}")
        if whole:
            self.ready().tab.evaluate("dispatchEvent(new Event('beforeprint'))")
        return self.ready()

    def ready(self) -> Opened:
        """Wait until no drawing is under way."""
        # Not wait_for_function: it polls with eval, which the page's policy forbids.
        self.tab.locator("html[data-drawing='0']").wait_for(state="attached")
        return self

    def select(self, field: str, value: str) -> Opened:
        self.tab.select_option(f"[data-field={field}]", value)
        return self.ready()

    def marks(self, chart: str) -> list[str]:
        """The colour and place of each point of a chart."""
        script = "all => all.map(p => ['fill', 'transform', 'd'].map(name => p.getAttribute(name)).join(' '))"
        return self.tab.eval_on_selector_all(f"#chart-{chart} .mark-symbol path", script)


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Callable[..., Opened]]:
    """`opened(result_set, width=400, dark=True)`: its page in a browser without a network."""
    contexts: list[Any] = []

    def open_page(*sets: ResultSet, width: int = 1400, dark: bool = False, address: str = "") -> Opened:
        path = write_page(sets or [small_set()], tmp_path / f"page{len(contexts)}.html")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", offline=True
        )
        contexts.append(context)
        return Opened(context.new_page(), path).go(address)

    yield open_page
    for context in contexts:
        context.close()
