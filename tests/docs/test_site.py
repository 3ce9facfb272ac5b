"""The site builds without a warning, and its generated reference is up to date."""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import attnbench
from tests.tools.loaded import tool

ROOT = Path(__file__).resolve().parents[2]


def test_the_command_line_reference_is_up_to_date() -> None:
    reference = tool("command_line_page.py")
    same = reference.PAGE.read_text(encoding="utf-8") == reference.page()
    assert same, f"docs/reference/command-line.md is out of date; run {reference.AGAIN}"


def test_every_public_name_is_on_the_python_page() -> None:
    page = (ROOT / "docs" / "reference" / "python.md").read_text()
    named = re.findall(r"^::: attnbench\.(?:[a-z_]+\.)*(\w+)$", page, re.MULTILINE)
    assert sorted(named) == sorted(attnbench.__all__)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the built site."""
    for library in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(library, reason=f"{library} is not installed: pip install 'attnbench[docs]'")
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        capture_output=True,
        text=True,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_site_is_built_without_a_warning_and_has_every_page(site: Path) -> None:
    pages = {path.relative_to(ROOT / "docs").with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    built = {path.relative_to(site) for path in site.rglob("*.html")}
    assert {path.with_name("index.html") if path.stem == "README" else path for path in pages} <= built


def test_no_markup_is_shown_as_it_is_written(site: Path) -> None:
    for page in site.rglob("*.html"):
        prose = re.sub(r"<code>.*?</code>", "", page.read_text(), flags=re.DOTALL)
        assert "```" not in prose, page
        assert not re.search(r"^:::", prose, re.MULTILINE), page


def test_the_docstrings_are_on_the_python_page(site: Path) -> None:
    page = (site / "reference" / "python.html").read_text()
    for name in attnbench.__all__:
        first = (getattr(attnbench, name).__doc__ or "").split(".")[0].split("`")[0].strip()
        assert html.escape(first, quote=False) in html.escape(html.unescape(page), quote=False), name


def test_links_that_leave_the_pages_become_text() -> None:
    inside = tool("site_hooks.py").inside
    page = ROOT / "docs" / "decisions" / "01.md"
    text = "[a](../method.md) [b](../../backends/naive.py) [`c`](../../x#y) [d e](../../z) [f](#g) ![h](../../i.png)"
    assert inside(text, page) == "[a](../method.md) `b` `c` d e [f](#g) ![h](../../i.png)"


def test_a_pattern_in_the_nav_stands_for_its_pages(tmp_path: Path) -> None:
    for name in ("02-b.md", "01-a.md", "README.md"):
        (tmp_path / name).write_text("# x")
    nav = ["a.md", {"Decisions": ["README.md", "[0-9]*.md"]}, {"Home": "index.md"}, "none*.md"]
    expected = ["a.md", {"Decisions": ["README.md", "01-a.md", "02-b.md"]}, {"Home": "index.md"}]
    assert tool("site_hooks.py").expanded(nav, tmp_path) == expected
