"""Did it get worse? Two result sets held against each other."""

from attnbench.gate.accepted import Accepted, accepting, read_accepted
from attnbench.gate.comparison import Change, Comparison, StatusChange, compare
from attnbench.gate.pairing import Pairs, ResultSet, pair
from attnbench.gate.stages import hold_against
from attnbench.gate.sequential import Outcome, Rule, decide
from attnbench.gate.statistics import GeometricMean, Ratio, ratio_of_medians
from attnbench.gate.touched import Contest, Touched, touched
from attnbench.gate.verdict import FAILING, KINDS, MARGIN, Finding, Gate, gate

__all__ = [
    "FAILING",
    "KINDS",
    "MARGIN",
    "Accepted",
    "Change",
    "Comparison",
    "Contest",
    "Finding",
    "Gate",
    "GeometricMean",
    "Outcome",
    "Pairs",
    "Ratio",
    "ResultSet",
    "Rule",
    "StatusChange",
    "Touched",
    "accepting",
    "compare",
    "decide",
    "gate",
    "hold_against",
    "pair",
    "ratio_of_medians",
    "read_accepted",
    "touched",
]
