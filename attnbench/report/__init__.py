"""Results as DataFrames, tables, charts and a page."""

from attnbench.report.frame import frame, load

__all__ = ["frame", "load"]
