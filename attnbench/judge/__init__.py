"""The verdict on one answer: the exact answer, the rounding noise that it allows, right or wrong."""

from attnbench.judge.reference import Expected, Reference, make_reference
from attnbench.judge.verdict import TensorError, Verdict, judge

__all__ = ["Expected", "Reference", "TensorError", "Verdict", "judge", "make_reference"]
