"""The gate: compare two result sets or two revisions, and name what got worse."""

from attnbench.gate.accepted import Accepted, accepting, read_accepted
from attnbench.gate.comparison import Change, Comparison, StatusChange, compare
from attnbench.gate.pairing import Pairs, ResultSet, pair
from attnbench.gate.sequential import Outcome, Rule, decide
from attnbench.gate.stages import gate_in_stages
from attnbench.gate.statistics import GeometricMean, Ratio, ratio_of_medians
from attnbench.gate.touched import BackendVersions, Touched, touched
from attnbench.gate.verdict import FAILING, KINDS, MARGIN, Finding, Gate, gate

__all__ = [
    "FAILING",
    "KINDS",
    "MARGIN",
    "Accepted",
    "BackendVersions",
    "Change",
    "Comparison",
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
    "gate_in_stages",
    "pair",
    "ratio_of_medians",
    "read_accepted",
    "touched",
]
