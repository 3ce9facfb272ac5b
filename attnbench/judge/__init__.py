"""Is it right? The exact answer, the noise it allows, the verdict, and the checks of a backend."""

from attnbench.judge.conformance import check
from attnbench.judge.parametrize import parametrize_with_backends
from attnbench.judge.reference import Expected, Reference, make_reference
from attnbench.judge.report import Failure, Report
from attnbench.judge.verdict import Verdict, judge

__all__ = [
    "Expected",
    "Failure",
    "Reference",
    "Report",
    "Verdict",
    "check",
    "judge",
    "make_reference",
    "parametrize_with_backends",
]
