"""What does the site change in what is written? Patterns in its nav, and links that leave docs/ (to a source file)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)[^)]*\)")


def on_config(config: Any) -> None:
    """What mkdocs calls with mkdocs.yml."""
    config.nav = expanded(config.nav, DOCS)


def expanded(nav: list[Any], docs: Path) -> list[Any]:
    """The nav with the pages, by name, in place of the pattern that they match."""
    found: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            found.append({k: expanded(v, docs) if isinstance(v, list) else v for k, v in item.items()})
        elif "*" in item:
            found += sorted(path.relative_to(docs).as_posix() for path in docs.glob(item))
        else:
            found.append(item)
    return found


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
