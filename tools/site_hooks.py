"""What the site changes in a page: a link that leaves docs/ (to a source file) becomes the text of it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)[^)]*\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """What mkdocs calls with each page."""
    return inside(markdown, DOCS / page.file.src_uri)


def inside(markdown: str, page: Path) -> str:
    """The page with links to files outside of docs/ as code; that they are there is a test's business."""

    def kept(found: re.Match[str]) -> str:
        text, target = found.groups()
        if (page.parent / target).resolve().is_relative_to(DOCS):
            return found.group()
        return text if "`" in text or " " in text else f"`{text}`"

    return LINK.sub(kept, markdown)
