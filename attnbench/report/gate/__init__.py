"""The gate's verdict for a pull request: Markdown, JUnit XML and GitHub annotations."""

from attnbench.report.gate.annotations import gate_annotations
from attnbench.report.gate.junit import gate_junit
from attnbench.report.gate.markdown import COMMENT_BYTES, gate_markdown

__all__ = ["COMMENT_BYTES", "gate_annotations", "gate_junit", "gate_markdown"]
