"""The gate's Markdown, JUnit XML and annotations show its findings, and hostile names in them do nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any
from xml.etree import ElementTree

import pytest
from markdown_it import MarkdownIt

from attnbench.gate import Finding, Gate, Ratio
from attnbench.report.gate import (
    COMMENT_BYTES,
    gate_annotations,
    gate_junit,
    gate_markdown,
)

HOSTILE = [
    "a|b|c",
    "back`tick``s",
    "<img src=x onerror=alert(1)><script>alert(1)</script>",
    "line\nbreak\r\n::error::planted\u2028x",
    "@octocat and #1 and https://evil.example/x www.evil.example",
    "[link](https://evil.example) ![picture](https://evil.example/p.png) **bold** ~~gone~~",
    "</code></details></td></table><h1>Not worse</h1>",
    "\\|\\\\| $x^2$ &lt;b&gt; &copy;",
    "bell\x07 null\x00 escape\x1b[31m bidi\u202e \ud800 \ufffe",
    "--> ]]> <!-- <![CDATA[",
    "::error title=x::100%25 %0A",
    "x" * 1_000_000,
]

TAGS = set("h2 p details summary table thead tbody tr th td code strong ul li".split())  # noqa: SIM905


def a_finding(
    kind: Any = "slower", case: str = "q64-full-fwd", backend: str = "naive", **more: Any
) -> Finding:
    fields: dict[str, Any] = {
        "message": "fwd 1.200x",
        "which": "fwd",
        "ratio": Ratio(1.2, 2.0, 2.4, 1.1, 1.3),
    }
    return Finding(kind=kind, case=case, backend=backend, **(fields | more))


def a_gate(*findings: Finding) -> Gate:
    return Gate(findings, 0.1)


class Rendered(HTMLParser):
    """The tags, attributes and text of a page, and the text of each table cell by row."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.rows: list[list[str]] = []
        self.depth = 0
        self.words: list[str] = []  # outside of code
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {f"{tag} {name}" for name, _ in attrs}
        self.depth += tag == "details"
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.depth -= tag == "details"
        while self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "code" not in self.open:
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def rendered(markdown: str) -> Rendered:
    return Rendered(
        MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(markdown)
    )


def test_the_verdict_is_the_first_line() -> None:
    bad = a_gate(a_finding(), a_finding("wrong", ratio=None), a_finding("same", case="other"))
    assert gate_markdown(bad).splitlines()[0] == "## Worse: 1 wrong, 1 slower"
    assert gate_markdown(a_gate(a_finding("same"))).splitlines()[0] == "## Not worse"
    assert gate_markdown(a_gate()).splitlines()[0] == "## Not worse"
    unsure = a_gate(a_finding("inconclusive"))
    assert gate_markdown(unsure).startswith("## Not worse, as far as it can be told: 1 inconclusive\n")
    assert gate_markdown(unsure, strict=True).startswith("## Not shown to be the same: 1 inconclusive\n")


def test_the_worst_kind_and_then_the_largest_effect_come_first() -> None:
    judged = a_gate(
        a_finding("same", "c0"),
        a_finding("faster", "c1", ratio=Ratio(0.5, 2.0, 1.0)),
        a_finding("slower", "c2", ratio=Ratio(1.1, 2.0, 2.2)),
        a_finding("inconclusive", "c3"),
        a_finding("slower", "c4", ratio=Ratio(3.0, 2.0, 6.0)),
        a_finding("faster", "c5", ratio=Ratio(0.2, 2.0, 0.4)),
        a_finding("wrong", "c6", ratio=None),
    )
    view = rendered(gate_markdown(judged))
    assert [row[2] for row in view.rows if row[0] != "verdict"] == ["c6", "c4", "c2", "c3", "c5", "c1", "c0"]
    assert [row[4] for row in view.rows[1:4]] == ["-", "3.000x", "1.100x"]


def test_a_row_shows_what_was_measured() -> None:
    view = rendered(gate_markdown(a_gate(a_finding())))
    assert view.rows[1] == [
        "slower",
        "naive",
        "q64-full-fwd",
        "fwd",
        "1.200x",
        "2.00 ms",
        "2.40 ms",
        "1.100 to 1.300",
    ]
    assert "fwd 1.200x" in "".join(view.words)
    assert {"details", "summary"} <= view.tags


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_inert_in_markdown(text: str) -> None:
    findings = [a_finding(backend=text, case=text, which=text, message=text), a_finding("same", text, text)]
    page = gate_markdown(a_gate(*findings), notes=[text])
    view = rendered(page)
    assert view.tags <= TAGS
    assert view.attributes <= {"th style", "td style"}
    assert view.depth == 0
    assert {len(row) for row in view.rows} == {8}
    assert len(view.rows) == 4  # two tables of a head and a finding
    # GitHub looks for mentions and references in the words that are rendered outside of code.
    assert not re.search(r"@\w|#\d", "".join(view.words))
    assert "://" not in page
    assert "www." not in page
    assert not re.search(r"[\x00-\x09\x0b-\x1f\u202e]", page)


def test_a_hostile_name_is_still_shown() -> None:
    for text in HOSTILE[:2] + HOSTILE[5:8]:
        view = rendered(gate_markdown(a_gate(a_finding(backend=text[:80]))))
        assert view.rows[1][1].replace("\u200b", "") == text[:80]


@pytest.mark.parametrize("limit", [4_000, 20_000, COMMENT_BYTES, 1 << 20])
def test_the_limit_holds_and_what_was_cut_is_counted(limit: int) -> None:
    findings = [
        a_finding(kind, f"q{number}-{'é' * 250}", "b|" * 40, message="@m " * 100)
        for kind in ("slower", "inconclusive", "same")
        for number in range(3_000)
    ]
    notes = ["@" * 300] * 30
    page = gate_markdown(a_gate(*findings), limit, notes=notes)
    assert len(page.encode()) <= limit
    assert page.startswith("## Worse: 3000 slower\n")
    view = rendered(page)
    assert view.depth == 0
    assert {len(row) for row in view.rows} == {8}
    assert len(view.rows) > 2
    left = [int(number.replace(",", "")) for number in re.findall(r"^and ([\d,]+) more", page, re.MULTILINE)]
    shown = len([row for row in view.rows if row[0] != "verdict"])
    # Changed findings are in the table and again in sentences, unchanged ones in a table of their own.
    assert shown + left[0] + left[-1] == 9_000
    assert page.count("\n- ") + left[1] == 6_000


def test_a_limit_too_small_for_any_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 4000 bytes"):
        gate_markdown(a_gate(), 100)


def suites_of(text: str) -> list[ElementTree.Element]:
    """The suites of a report, which follows Jenkins' and Surefire's schemas."""
    root = ElementTree.fromstring(text.encode())
    assert root.tag == "testsuites"
    assert set(root.attrib) == {"name", "tests", "failures", "errors"}  # `skipped` is not allowed here
    suites = list(root)
    for suite in suites:
        assert suite.tag == "testsuite"
        assert set(suite.attrib) == {"name", "tests", "failures", "errors", "skipped"}
        for test in suite:
            assert test.tag == "testcase"
            assert set(test.attrib) == {"classname", "name", "time"}
            assert float(test.attrib["time"]) >= 0
            for outcome in test:
                assert outcome.tag in ("failure", "skipped", "system-out")
                assert set(outcome.attrib) == (set() if outcome.tag == "system-out" else {"type", "message"})
        assert int(suite.attrib["tests"]) == len(suite)
        assert int(suite.attrib["failures"]) == len(suite.findall("testcase/failure"))
        assert int(suite.attrib["skipped"]) == len(suite.findall("testcase/skipped"))
        names = [test.attrib["name"] for test in suite]
        assert len(set(names)) == len(names)
    for count in ("tests", "failures", "errors"):
        assert int(root.attrib[count]) == sum(int(suite.attrib[count]) for suite in suites)
    return suites


def test_a_test_of_junit_is_a_pass_of_a_case_on_a_backend() -> None:
    judged = a_gate(
        a_finding("wrong", "c1", "flex", which="", ratio=None, message="is wrong: out"),
        a_finding("slower", "c2"),
        a_finding("slower", "c2", which="bwd", message="bwd 1.3x"),
        a_finding("bigger", "c2", which="fwd_peak", ratio=None),
        a_finding("inconclusive", "c3"),
        a_finding("faster", "c4"),
        a_finding("same", "c5"),
    )
    flex, naive = suites_of(gate_junit(judged))
    assert [test.attrib["name"] for test in flex] == ["c1"]
    assert flex[0][0].attrib == {"type": "wrong", "message": "wrong: is wrong: out"}
    outcomes = {test.attrib["name"]: [child.tag for child in test] for test in naive}
    assert outcomes == {
        "c2 bwd": ["failure"],
        "c2 fwd": ["failure"],
        "c2 fwd_peak": ["failure"],
        "c3 fwd": ["skipped"],
        "c4 fwd": ["system-out"],
        "c5 fwd": [],
    }
    assert float(naive[1].attrib["time"]) == 0.0024
    strict = suites_of(gate_junit(judged, strict=True))[1]
    assert [child.tag for child in strict.findall("testcase[@name='c3 fwd']/*")] == ["failure"]


def test_two_findings_of_one_pass_are_one_test_with_both_sentences() -> None:
    judged = a_gate(a_finding("slower", message="is slow"), a_finding("bigger", message="is big", ratio=None))
    (suite,) = suites_of(gate_junit(judged))
    (test,) = suite
    assert test[0].attrib["type"] == "bigger"
    assert "is slow" in (test[0].text or "")
    assert "is big" in (test[0].text or "")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_are_text_in_junit(text: str) -> None:
    report = gate_junit(a_gate(a_finding(backend=text, case=text, message=text), a_finding("new", text)))
    assert len(report) < 40_000
    assert len(suites_of(report)) == 2
    assert not re.search(r"[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]", report)


def test_an_empty_gate_is_an_empty_report() -> None:
    assert suites_of(gate_junit(a_gate())) == []
    assert gate_annotations(a_gate()) == []


COMMAND = re.compile(r"::(error|warning|notice) title=([^:,\r\n]*)::([^\r\n]*)")


def read_by_github(line: str) -> tuple[str, str, str]:
    """Level, title and message as the runner reads a workflow command."""
    match = COMMAND.fullmatch(line)
    assert match is not None, line
    level, title, message = match.groups()
    for sign, escaped in ((":", "%3A"), (",", "%2C"), ("\r", "%0D"), ("\n", "%0A"), ("%", "%25")):
        title = title.replace(escaped, sign)
    for sign, escaped in (("\r", "%0D"), ("\n", "%0A"), ("%", "%25")):
        message = message.replace(escaped, sign)
    return level, title, message


def test_annotations_are_commands_that_github_reads_back() -> None:
    finding = a_finding("slower", "h8:2,d64", "a.py:f", message="100 % slower: 1.3x, 50%0A")
    (line,) = gate_annotations(a_gate(finding))
    assert line == "::error title=slower a.py%3Af h8%3A2%2Cd64 fwd::100 %25 slower: 1.3x, 50%250A"
    assert read_by_github(line) == ("error", "slower a.py:f h8:2,d64 fwd", "100 % slower: 1.3x, 50%0A")


def test_annotations_have_levels_and_the_same_has_none() -> None:
    judged = a_gate(a_finding("same"), a_finding("faster"), a_finding("inconclusive"), a_finding("wrong"))
    assert [read_by_github(line)[0] for line in gate_annotations(judged)] == ["error", "warning", "notice"]
    assert [read_by_github(line)[0] for line in gate_annotations(judged, strict=True)] == [
        "error",
        "error",
        "notice",
    ]


def test_at_most_ten_annotations_a_level_and_the_last_counts_the_rest() -> None:
    ratios = [Ratio(1 + number / 100, 1.0, 1.0) for number in range(1, 26)]
    slow = [a_finding("slower", f"c{place}", ratio=ratio) for place, ratio in enumerate(ratios)]
    lines = gate_annotations(a_gate(*slow, a_finding("new"), *[a_finding("inconclusive")] * 10))
    levels = [read_by_github(line)[0] for line in lines]
    assert levels == ["error"] * 10 + ["warning"] * 10 + ["notice"]
    assert " c24 " in read_by_github(lines[0])[1]
    assert read_by_github(lines[9])[2].startswith("and 16 more")


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_texts_plant_no_command(text: str) -> None:
    lines = gate_annotations(a_gate(a_finding(backend=text, case=text, which=text, message=text)))
    assert len(lines) == 1
    assert read_by_github(lines[0])[0] == "error"
    assert len(lines[0]) < 3_000
