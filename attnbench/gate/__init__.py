"""Did it get worse? Two result sets held against each other."""

from attnbench.gate.comparison import Change, Comparison, StatusChange, compare
from attnbench.gate.pairing import Pairs, ResultSet, pair
from attnbench.gate.statistics import GeometricMean, Ratio, ratio_of_medians
from attnbench.gate.verdict import FAILING, KINDS, MARGIN, Finding, Gate, gate

__all__ = [
    "FAILING",
    "KINDS",
    "MARGIN",
    "Change",
    "Comparison",
    "Finding",
    "Gate",
    "GeometricMean",
    "Pairs",
    "Ratio",
    "ResultSet",
    "StatusChange",
    "compare",
    "gate",
    "pair",
    "ratio_of_medians",
]
