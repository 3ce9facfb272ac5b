"""The page: results in one self-contained HTML file; who is right, who is fastest, and how far to trust it."""

from attnbench.report.page.render import page, write_page
from attnbench.report.page.trust import furthest_off

__all__ = ["furthest_off", "page", "write_page"]
