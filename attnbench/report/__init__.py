"""How is a result set made and read? run, load and backends give DataFrames; tables and charts show them."""

from attnbench.report.frame import frame, load
from attnbench.report.session import backends, run

__all__ = ["backends", "frame", "load", "run"]
