"""The gate's verdict as GitHub annotations: workflow commands for stdout."""

from __future__ import annotations

from collections.abc import Sequence

from attnbench.gate import Finding, Gate
from attnbench.report.cells import clean
from attnbench.report.gate.order import Level, level_of, worst_first

MOST_PER_LEVEL = 10  # GitHub shows ten annotations of a level from one step, and drops the rest
COMMANDS: dict[Level, str] = {"failure": "error", "warning": "warning", "remark": "notice"}
LONGEST_TITLE, LONGEST_MESSAGE = 160, 600


def gate_annotations(judged: Gate, *, strict: bool = False) -> list[str]:
    """`::error title=...::message`, one line per finding, the worst first; the tenth of a level counts the rest.

    Failures are errors, inconclusive findings warnings (strict: errors), new, faster and accepted ones notices.
    Print each on a line of its own to stdout.
    """
    by_command: dict[str, list[Finding]] = {command: [] for command in COMMANDS.values()}
    for finding in worst_first(judged.findings):
        command = COMMANDS.get(level_of(finding))
        if strict and finding.kind == "inconclusive":
            command = "error"
        if command is not None:
            by_command[command].append(finding)
    return [line for command, findings in by_command.items() for line in _lines(command, findings)]


def _lines(command: str, findings: Sequence[Finding]) -> list[str]:
    shown = findings if len(findings) <= MOST_PER_LEVEL else findings[: MOST_PER_LEVEL - 1]
    lines = [_line(command, _title(finding), finding.message) for finding in shown]
    if len(shown) < len(findings):
        rest = f"and {len(findings) - len(shown):,} more; the summary and the JSON of the gate have all"
        lines.append(_line(command, "attnbench gate", rest))
    return lines


def _title(finding: Finding) -> str:
    names = (finding.kind, clean(finding.backend, 60), finding.case, finding.which)
    return " ".join(name for name in names if name)


def _line(command: str, title: str, message: str) -> str:
    return f"::{command} title={_property(title)}::{_value(clean(message, LONGEST_MESSAGE))}"


def _value(text: str) -> str:
    """A command's text; the percent sign is escaped first, because the others are escaped with it."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _value(clean(text, LONGEST_TITLE)).replace(":", "%3A").replace(",", "%2C")
