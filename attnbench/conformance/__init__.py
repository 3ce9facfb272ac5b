"""A backend held to everything it claims: the battery, the properties, the protocol, and the cause of a failure."""

from attnbench.conformance.conformance import check
from attnbench.conformance.outcome import Failure
from attnbench.conformance.parametrize import parametrize_with_backends
from attnbench.conformance.report import Report
from attnbench.conformance.steps import CheckProgress

__all__ = ["CheckProgress", "Failure", "Report", "check", "parametrize_with_backends"]
