"""The gate's verdict as JUnit XML for a CI server: one test per comparison."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any
from xml.etree import ElementTree

from attnbench.gate import Finding, Gate
from attnbench.report.cells import clean
from attnbench.report.gate.order import Level, level_of, worst_first

# Characters that XML 1.0 cannot write, not even as references.
UNWRITABLE = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
LONGEST_TEXT = 2_000  # characters of a foreign text
NAME = "attnbench gate"


def gate_junit(judged: Gate, *, strict: bool = False) -> str:
    """A JUnit report in UTF-8: one suite per backend, one test per (case, pass); its time is that of one call of head.

    A test fails if the gate fails, and is skipped if it is inconclusive (strict: fails too).
    """
    by_backend: dict[str, dict[tuple[str, str], list[Finding]]] = {}
    for finding in worst_first(judged.findings):
        tests = by_backend.setdefault(finding.backend, {})
        tests.setdefault((finding.case, finding.which), []).append(finding)
    root = ElementTree.Element("testsuites", name=NAME)
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for backend, tests in sorted(by_backend.items()):
        suite = ElementTree.SubElement(root, "testsuite", name=_text(backend))
        outcomes = [
            _test(suite, backend, case, which, findings, strict)
            for (case, which), findings in sorted(tests.items())
        ]
        counts = {"tests": len(outcomes), "failures": outcomes.count("failure"), "errors": 0}
        _set(suite, counts | {"skipped": outcomes.count("warning")})
        totals = {name: totals[name] + counts[name] for name in totals}
    _set(root, totals)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _test(
    suite: Any, backend: str, case: str, which: str, findings: Sequence[Finding], strict: bool
) -> Level:
    """Append the test of one (case, pass) to its suite; the worst of its findings decides, all are written."""
    worst = findings[0]
    outcome = level_of(worst)
    if strict and worst.kind == "inconclusive":
        outcome = "failure"
    test = ElementTree.SubElement(
        suite, "testcase", classname=_text(backend), name=_text(f"{case} {which}".strip())
    )
    timed = next((finding.ratio for finding in findings if finding.ratio is not None), None)
    test.set("time", "0" if timed is None else f"{timed.head_ms / 1e3:.9f}")
    sentences = "\n".join(f"{finding.kind}: {_text(finding.message)}" for finding in findings)
    if outcome in ("failure", "warning"):
        tag = "failure" if outcome == "failure" else "skipped"
        element = ElementTree.SubElement(
            test, tag, type=_text(worst.kind), message=_text(f"{worst.kind}: {worst.message}")
        )
        element.text = f"{_text(backend)} on {_text(case)}\n{sentences}"
    elif outcome == "remark":
        ElementTree.SubElement(test, "system-out").text = sentences
    return outcome


def _text(text: str) -> str:
    return UNWRITABLE.sub("", clean(text, LONGEST_TEXT))


def _set(element: Any, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        element.set(name, str(count))
