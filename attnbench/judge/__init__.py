"""The verdict on one answer: the exact answer, the rounding noise that it allows, right or wrong."""

from attnbench.judge.reference import Expected, Reference, make_reference
from attnbench.judge.verdict import Verdict, judge

__all__ = ["Expected", "Reference", "Verdict", "judge", "make_reference"]
