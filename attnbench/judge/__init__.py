"""Is it right? The exact answer, the noise it allows, the verdict, and the checks of a backend."""

from attnbench.judge.conformance import check, parametrize_with_backends
from attnbench.judge.report import Failure, Report
from attnbench.judge.verdict import Expected, Reference, Verdict, judge, make_reference

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
