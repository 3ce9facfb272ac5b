"""The gate's verdict as Markdown: the verdict, a table of what changed, the rest folded away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from attnbench.gate import Finding, Gate
from attnbench.report.cells import NOTHING, clean, markdown_cell, milliseconds
from attnbench.report.gate.order import counted, headline, level_of, worst_first
from attnbench.report.markdown import grid

COMMENT_BYTES = 65_536  # GitHub's limit of a comment, in characters; the summary of a step may have 1 MiB
FEWEST_BYTES = 4_000
HEAD = ("verdict", "backend", "case", "pass", "head / base", "base", "head", "interval")
TEXT_COLUMNS = 4
# The share of the limit that a part and those before it may take.
SHARES = {"notes": 0.2, "changed": 0.5, "sentences": 0.8, "same": 1.0}
LONGEST_NAME = 80
RESERVE = 400  # bytes for "and n more" and the end of a folded part
MORE = "and {:,} more; the JSON of the gate has all"


def gate_markdown(
    judged: Gate, limit_bytes: int = COMMENT_BYTES, *, strict: bool = False, notes: Sequence[str] = ()
) -> str:
    """GitHub-flavoured Markdown of at most `limit_bytes` bytes of UTF-8, the verdict in its first line.

    `notes` are lines below it (unlike machines, the rule that decided). The default limit is that of a comment,
    which fits a job summary too. What does not fit is counted.
    Every foreign text is inert: no markup, HTML, mention, reference or link. ValueError below FEWEST_BYTES.
    """
    if limit_bytes < FEWEST_BYTES:
        raise ValueError(f"a verdict needs at least {FEWEST_BYTES} bytes, not {limit_bytes}")
    findings = worst_first(judged.findings)
    changed = [finding for finding in findings if level_of(finding) != "nothing"]
    same = [finding for finding in findings if level_of(finding) == "nothing"]
    page = Page(limit_bytes)
    page.add(f"## {headline(judged, strict=strict)}\n")
    page.add(f"\n{counted(findings)} of {len(findings):,} comparisons.\n")
    for note in notes[:20]:
        page.add(f"\n{markdown_cell(note)}\n", SHARES["notes"])
    if changed:
        page.table(changed, SHARES["changed"])
        page.folded("The findings in sentences", map(sentence, changed), len(changed), SHARES["sentences"])
    if same and page.add(f"\n<details><summary>{len(same):,} as before</summary>\n"):
        page.table(same, SHARES["same"])
        page.close()
    return page.text()


class Page:
    """Markdown that never exceeds its limit: whole lines, and a count of those that do not fit."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes - RESERVE
        self._size, self._parts = 0, [""]

    def text(self) -> str:
        return "".join(self._parts)

    def add(self, text: str, share: float = 1.0) -> bool:
        """Append the text, unless it exceeds the share of the page that it may fill."""
        size = len(text.encode())
        if self._size + size > self._limit * share:
            return False
        self._size += size
        self._parts.append(text)
        return True

    def close(self) -> None:
        """End a folded part; the reserve has room for it."""
        self._parts.append("\n</details>\n")

    def table(self, findings: Sequence[Finding], share: float) -> None:
        """A table of as many findings as fit."""
        if self.add(f"\n{grid(HEAD, [], texts=TEXT_COLUMNS)}\n", share):
            self._lines((f"{grid_row(finding)}\n" for finding in findings), len(findings), share)

    def folded(self, title: str, lines: Iterable[str], count: int, share: float) -> None:
        """A part that opens at a click."""
        if self.add(f"\n<details><summary>{title}</summary>\n\n", share):
            self._lines((f"- {line}\n" for line in lines), count, share)
            self.close()

    def _lines(self, lines: Iterable[str], count: int, share: float) -> None:
        for place, line in enumerate(lines):
            if not self.add(line, share):
                self._parts.append(f"\n{MORE.format(count - place)}\n")
                return


def grid_row(finding: Finding) -> str:
    """One line of the table."""
    ratio = finding.ratio
    figures = [NOTHING] * 4
    if ratio is not None:
        has_interval = ratio.low is not None and ratio.high is not None
        interval = f"{ratio.low:.3f} to {ratio.high:.3f}" if has_interval else "not known"
        figures = [f"{ratio.point:.3f}x", milliseconds(ratio.base_ms), milliseconds(ratio.head_ms), interval]
    kind = markdown_cell(clean(finding.kind, LONGEST_NAME))
    kind = f"**{kind}**" if level_of(finding) == "failure" else kind
    return f"| {' | '.join([kind, *_names(finding), *figures])} |"


def sentence(finding: Finding) -> str:
    """`backend case pass: message`, inert."""
    return f"{' '.join(name for name in _names(finding) if name)}: {markdown_cell(finding.message)}"


def _names(finding: Finding) -> list[str]:
    names = (clean(finding.backend, LONGEST_NAME), clean(finding.case), clean(finding.which, LONGEST_NAME))
    return [f"<code>{markdown_cell(name)}</code>" if name else "" for name in names]
