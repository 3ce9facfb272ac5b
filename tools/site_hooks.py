"""Changes that the site makes to the pages: patterns in its nav are expanded, links that leave docs/ become text."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1] / "docs"
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?![a-z]+:|#)([^)#\s]+)[^)]*\)")


def on_config(config: Any) -> None:
    """Expand the nav; mkdocs calls this with mkdocs.yml."""
    config.nav = expanded(config.nav, DOCS)


def expanded(nav: list[Any], docs: Path) -> list[Any]:
    """The nav with each pattern replaced by the pages that match it, sorted by name."""
    pages: list[Any] = []
    for item in nav:
        if isinstance(item, dict):
            pages.append({k: expanded(v, docs) if isinstance(v, list) else v for k, v in item.items()})
        elif "*" in item:
            pages += sorted(path.relative_to(docs).as_posix() for path in docs.glob(item))
        else:
            pages.append(item)
    return pages


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/ into text; mkdocs calls this with each page."""
    return inside(markdown, DOCS / page.file.src_uri)


def inside(markdown: str, page: Path) -> str:
    """The page with links to files outside docs/ as code; a test checks that the files exist."""

    def kept(link: re.Match[str]) -> str:
        text, target = link.groups()
        if (page.parent / target).resolve().is_relative_to(DOCS):
            return link.group()
        return text if "`" in text or " " in text else f"`{text}`"

    return LINK.sub(kept, markdown)
